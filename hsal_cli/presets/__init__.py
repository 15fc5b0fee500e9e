"""Preset files (TOML) that come with the package."""
