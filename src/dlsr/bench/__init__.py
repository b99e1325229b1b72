"""Measurements: what `dlsr bench` runs."""
