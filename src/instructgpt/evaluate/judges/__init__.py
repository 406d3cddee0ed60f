"""Language models and trained classifiers that judge completions."""
