"""Stored models: load, shipped, export, and showing them images."""
