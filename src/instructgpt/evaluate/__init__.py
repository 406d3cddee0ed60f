"""Measurements with 95 % intervals; one file an evaluation, all of one shape."""
