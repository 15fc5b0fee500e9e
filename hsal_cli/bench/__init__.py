"""How fast each stage is here, beside the floor that the machine sets."""
