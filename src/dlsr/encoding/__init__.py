"""From images to features: the pipeline that encodes, and the store that keeps features on disk."""
