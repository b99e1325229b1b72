"""From scores to decisions: conformal p-values, thresholds, drift and metrics. NumPy in, NumPy out."""
