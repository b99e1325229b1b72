"""Benchmarks behind `dlsr bench`."""
