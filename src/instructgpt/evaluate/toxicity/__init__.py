"""Toxicity scorers: a classifier trained here, packages and services."""
