"""A run directory: lineage, metrics, checkpoints, signals, trackers."""
