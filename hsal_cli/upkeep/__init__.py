"""Keeping things in order: whether files and runs are sound, and whether the machine has what hsal needs."""
