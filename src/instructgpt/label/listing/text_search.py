"""Search for text in database columns, regardless of case in any script."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_
from sqlalchemy.orm import InstrumentedAttribute

from instructgpt.label.listing.filters import MAX_SEARCH_TERMS

_TERM_PATTERN = re.compile(r'"([^"]+)"|(\S+)')
_Column = InstrumentedAttribute[Any] | ColumnElement[Any]


def split_terms(text: str) -> list[str]:
    """Split a search into words and "quoted phrases"."""
    return [phrase or word for phrase, word in _TERM_PATTERN.findall(text)][:MAX_SEARCH_TERMS]


def contains_terms(column: _Column, terms: Sequence[str], dialect: str) -> ColumnElement[bool]:
    """Return the condition that a column contains all terms."""
    return and_(*(_contains(column, term, dialect) for term in terms))


def _contains(column: _Column, term: str, dialect: str) -> ColumnElement[bool]:
    # SQLite's LIKE ignores the case of ASCII letters only, and so does PostgreSQL's ILIKE in the locale "C": other
    # letters are searched by classes of letters.
    has_other_case = any(each.lower() != each.upper() for each in term if not each.isascii())
    if not has_other_case:
        pattern = "%" + re.sub(r"([\\%_])", r"\\\1", term) + "%"
        return column.like(pattern, escape="\\") if dialect == "sqlite" else column.ilike(pattern, escape="\\")
    if dialect == "sqlite":
        return column.op("GLOB", is_comparison=True)(
            f"*{''.join(_letter_class(each) or _glob(each) for each in term)}*"
        )
    return column.op("~", is_comparison=True)("".join(_letter_class(each) or re.escape(each) for each in term))


def _letter_class(letter: str) -> str | None:
    """Return the class of a letter's cases, in the syntax of both GLOB and regular expressions; None without cases."""
    variants = {letter, *(each for each in (letter.lower(), letter.upper()) if len(each) == 1)}
    return "[" + "".join(sorted(variants)) + "]" if len(variants) > 1 else None


def _glob(character: str) -> str:
    return f"[{character}]" if character in "*?[" else character
