"""Images: sources, decoding and transforms."""
