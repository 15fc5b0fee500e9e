"""The page on how training went."""
