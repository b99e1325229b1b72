"""From images to features: one pipeline, and the store that keeps what was encoded."""
