"""Figures 2-6 and 12 of the paper: trajectories, curves and contact sheets."""
