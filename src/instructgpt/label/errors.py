"""What the site refuses, and why: one exception, turned into JSON for programs and into a page for people."""

from __future__ import annotations

from typing import Any

from instructgpt.errors import one_line

_SKIP_BAD_HINT = " (--skip-bad goes on without such lines)"


def format_user_message(error: Exception) -> str:
    """What was wrong with what came in, on one line and without the option that only the command line has."""
    return one_line(str(error).replace(_SKIP_BAD_HINT, ""))


class SiteError(Exception):
    """Something that was asked for and will not be done. Nothing has changed.

    Args:
        status: the HTTP status.
        code: one word for programs; `problem.<code>` in the catalogue is the sentence for people, with `values` filled in.
        values: what the sentence names; programs get them as `detail`.
    """

    def __init__(self, status: int, code: str, **values: Any) -> None:
        super().__init__(code)
        self.status, self.code, self.values = status, code, values
