"""The `instructgpt label` commands."""
