"""Labelers' tasks: batches, assignments, drafts, submissions."""
