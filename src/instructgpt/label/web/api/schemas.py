"""What the service API's routes share: bodies without characters that databases refuse, cursors, and errors that say what to mend."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, model_validator

from instructgpt.label.auth.dependencies import Visitor, allow
from instructgpt.label.tasks.ingest import mend

Reads = Annotated[Visitor, allow("owner", scope="read")]
Writes = Annotated[Visitor, allow("owner", scope="write")]
Governs = Annotated[Visitor, allow("owner", scope="admin")]
"""Who may: a key with the scope, or an owner who is signed in."""


class Given(BaseModel):
    """Bodies of requests: what is not asked for is refused, and so are texts that no database can hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, value: Any) -> Any:
        if fault := unstorable(value):
            raise ValueError(fault)
        return value


def unstorable(value: Any) -> str | None:
    """What a database would refuse in a text, or in anything made of texts."""
    if isinstance(value, str):
        if "\x00" in value:
            return "a text holds a NUL character (U+0000)"
        return "a text holds half a surrogate pair" if any("\ud800" <= letter <= "\udfff" for letter in value) else None
    parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return next((fault for part in parts if (fault := unstorable(part))), None)


def mended(value: Any) -> Any:
    """A model's output may hold any character: each text in it as a database keeps it."""
    if isinstance(value, str):
        return mend(value)
    if isinstance(value, dict):
        return {mend(str(name)): mended(part) for name, part in value.items()}
    return [mended(part) for part in value] if isinstance(value, list) else value


def caller(visitor: Visitor) -> str:
    """Who asks, as the journal names them."""
    return f"key:{visitor.key.id}" if visitor.key else visitor.me.id


class Page(BaseModel):
    """`next` is the cursor of the page that follows; None: this was the last."""

    next: str | None
