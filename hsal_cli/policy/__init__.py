"""Section 3 of the paper, one module a box of figures 7-11: pure torch, knows no file, device or console."""
