"""Accounts, sessions, consent and request security."""
