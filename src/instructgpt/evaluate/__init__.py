"""Evaluations with 95 % intervals, one file each."""
