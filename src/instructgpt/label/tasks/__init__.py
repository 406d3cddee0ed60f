"""Labelers' work: batches, assignments, drafts, submissions."""
