"""`instructgpt doctor`: diagnose a run from its files."""
