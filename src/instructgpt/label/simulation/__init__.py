"""Simulated labelers that work on a running site over HTTP."""
