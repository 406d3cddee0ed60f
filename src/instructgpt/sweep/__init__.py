"""Sweeps: many runs that differ in a few options, made by any number of processes and machines."""
