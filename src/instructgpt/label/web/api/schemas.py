"""Base classes of request and response bodies; text that databases cannot store."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from instructgpt.label.tasks.ingest import replace_unstorable


class RequestModel(BaseModel):
    """A request body. Unknown fields and text that cannot be stored are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _reject_unstorable(cls, value: Any) -> Any:
        if fault := find_unstorable(value):
            raise ValueError(fault)
        return value


def find_unstorable(value: Any) -> str | None:
    """Return why a string in `value` cannot be stored (NUL, lone surrogate), or None."""
    if isinstance(value, str):
        if "\x00" in value:
            return "the text has a NUL character (U+0000)"
        has_surrogate = any("\ud800" <= character <= "\udfff" for character in value)
        return "the text has half of a surrogate pair" if has_surrogate else None
    items = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    if not isinstance(items, list | tuple):
        return None
    return next((fault for part in items if (fault := find_unstorable(part))), None)


def sanitize(value: Any) -> Any:
    """Replace the characters of a model's output that cannot be stored."""
    if isinstance(value, str):
        return replace_unstorable(value)
    if isinstance(value, dict):
        return {replace_unstorable(str(name)): sanitize(part) for name, part in value.items()}
    return [sanitize(part) for part in value] if isinstance(value, list) else value


class CursorPage(BaseModel):
    """A page of a list. Pass `next` as `after` to get the following page; None on the last page."""

    next: str | None
