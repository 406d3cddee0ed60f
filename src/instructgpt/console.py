"""The console that commands print to."""

from __future__ import annotations

import os
import sys

from rich.console import Console


class OutputConsole(Console):
    """A console whose reader may leave: `instructgpt ppo … | head` trains on, without output."""

    def on_broken_pipe(self) -> None:
        """Send what comes to /dev/null; rich would end the command, hours of training included."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        message = "instructgpt: the reader of standard output has closed it; the command goes on without output"
        print(message, file=sys.stderr)
