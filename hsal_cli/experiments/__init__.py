"""Whole grids of runs: Table 1 (reproduce), sweeps, and their reports."""
