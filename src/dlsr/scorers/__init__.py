"""What turns features into scores: one file a score."""
