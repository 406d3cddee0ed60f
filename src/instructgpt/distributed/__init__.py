"""Processes that compute together: communication, launch, failure attribution."""
