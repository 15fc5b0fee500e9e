"""What lies on disk: atomic files, HDF5 conventions, checkpoints."""
