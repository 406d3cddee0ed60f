"""`instructgpt doctor`: what is wrong with a run, read from its files alone."""
