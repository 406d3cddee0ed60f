"""The training stages: one stage, one file, one order."""
