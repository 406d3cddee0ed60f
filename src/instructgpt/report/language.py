"""The language of a report: messages of `locales/`, catalogs in the form of the site's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from instructgpt.errors import InputError
from instructgpt.label.i18n import list_languages, load_translator

REPORT_LOCALES_FOLDER = Path(__file__).parent / "locales"
DEFAULT_LANGUAGE = "en"

_COUNT_STEPS = {
    "en": ((1e9, " billion"), (1e6, " million"), (1e3, " thousand")),
    "ko": ((1e8, "억"), (1e4, "만")),
}
"""What stands for a power of ten: thousands in English, ten thousands in Korean."""

_language: ContextVar[str] = ContextVar("report_language", default=DEFAULT_LANGUAGE)


def current_language() -> str:
    return _language.get()


def translate(key: str, **values: Any) -> str:
    """Return the message of a key in the current language with its placeholders filled."""
    return load_translator(_language.get(), REPORT_LOCALES_FOLDER)(key, **values)


def find_message(key: str) -> str | None:
    """Return the message of a key without placeholders, or None for an unknown key."""
    return load_translator(_language.get(), REPORT_LOCALES_FOLDER).messages.get(key)


@contextmanager
def use_language(language: str) -> Iterator[None]:
    """Write reports in this language.

    Raises:
        InputError: there is no catalog of it.
    """
    available = list_languages(REPORT_LOCALES_FOLDER)
    if language not in available:
        raise InputError(f"--language {language}: no such language of reports; available: {', '.join(available)}")
    token = _language.set(language)
    try:
        yield
    finally:
        _language.reset(token)


def join_list(items: Iterable[str]) -> str:
    """Join with commas."""
    return translate("list.separator").join(items)


def format_duration(seconds: float) -> str:
    """Format a duration as `75 s`, `13 min` or `2 h 05 min`, with the units of the language."""
    if seconds < 90:
        return translate("duration.seconds", seconds=f"{seconds:.0f}")
    minutes = round(seconds / 60)
    if minutes < 90:
        return translate("duration.minutes", minutes=minutes)
    return translate("duration.hours", hours=minutes // 60, minutes=f"{minutes % 60:02d}")


def format_count(count: float | None) -> str:
    """Format 478,752 as `479 thousand`, or as the language groups large numbers."""
    if count is None or not math.isfinite(count):
        return "–"
    steps = _COUNT_STEPS.get(current_language(), _COUNT_STEPS[DEFAULT_LANGUAGE])
    for size, word in steps:
        if abs(count) >= size:
            return f"{count / size:.3g}{word}"
    return f"{count:.0f}"
