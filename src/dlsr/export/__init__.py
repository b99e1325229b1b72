"""A fitted detector as one graph that runs without dlsr."""
