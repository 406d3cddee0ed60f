"""Run directories: lineage, metrics, checkpoints, signals, trackers."""
