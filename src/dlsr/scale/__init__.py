"""Past one machine: collections cut into parts, and parts scored or encoded by workers of an existing engine."""
