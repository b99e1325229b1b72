"""Training: datasets of features, the loop, checkpoints, several processes."""
