"""Pages of owners and researchers."""
