"""The exception of a refused request, rendered as JSON for programs and as a page for people."""

from __future__ import annotations

from typing import Any

from instructgpt.errors import one_line

_SKIP_BAD_HINT = " (--skip-bad skips bad lines)"


def format_user_message(error: Exception) -> str:
    """Format an input error on one line, without the hint at a command-line option."""
    return one_line(str(error).replace(_SKIP_BAD_HINT, ""))


class SiteError(Exception):
    """A refused request; nothing has changed.

    Args:
        status: HTTP status.
        code: for programs; the catalog's `problem.<code>` is the sentence for people.
        values: placeholders of the sentence; programs get them as `detail`.
    """

    def __init__(self, status: int, code: str, **values: Any) -> None:
        super().__init__(code)
        self.status, self.code, self.values = status, code, values
