"""Labelers as people: screening, surveys, privacy."""
