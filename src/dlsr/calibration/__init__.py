"""From scores to decisions: conformal p-values, thresholds, drift and metrics. NumPy arrays in and out."""
