"""Watching a folder: images are scored as they arrive, and each result is kept once."""
