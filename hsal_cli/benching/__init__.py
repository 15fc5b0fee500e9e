"""How fast each stage is on this machine, beside the floor that the machine itself sets."""
