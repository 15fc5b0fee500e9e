"""Saliency models, and bringing their maps to cells."""
