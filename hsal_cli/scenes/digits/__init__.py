"""Glyphs of digits: IDX files, pen strokes."""
