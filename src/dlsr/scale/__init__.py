"""Scoring and encoding on a Ray cluster: a collection is split into parts, and workers process the parts."""
