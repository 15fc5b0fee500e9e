"""Street numbers, painted."""
