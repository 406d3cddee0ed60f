"""Imports and exports of a site."""
