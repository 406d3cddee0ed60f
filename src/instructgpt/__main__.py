"""`python -m instructgpt` is the `instructgpt` command."""

from instructgpt.cli import main

main()
