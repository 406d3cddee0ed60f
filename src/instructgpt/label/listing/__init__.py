"""Filtered, sorted and paged lists of tasks, submissions and people."""
