"""Pages of labelers."""
