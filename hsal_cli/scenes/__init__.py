"""Section 5's data: glyph sources, composing scenes, and the scene file."""
