"""Changes of many tasks, submissions or people at once, recorded row by row so that they can be undone."""
