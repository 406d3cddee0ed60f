"""Refusals: a trained detector with its cross-validation, and a string matcher beside it."""
