"""Screening, surveys and privacy requests."""
