"""What the service API's routes share: bodies without characters that databases refuse, cursors, and errors that say what to mend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, model_validator
from sqlalchemy.exc import IntegrityError

from instructgpt.errors import BadInput
from instructgpt.label.access import Visitor, allow
from instructgpt.label.intake import mend
from instructgpt.label.problem import Problem, in_words

T = TypeVar("T")
ID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
Id = Annotated[str, Path(pattern=ID)]
After = Annotated[str | None, Query(pattern=ID, description="the last id of the page before; the answer's `next`")]
Limit = Annotated[int, Query(ge=1, le=1000)]
Since = Annotated[int | None, Query(ge=0, lt=2**53, description="milliseconds since 1970, UTC")]

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


@contextmanager
def refusing() -> Iterator[None]:
    """Input that makes no sense is the caller's to mend (422), not a fault of the site. Raises Problem."""
    try:
        yield
    except (BadInput, ValueError) as error:
        raise Problem(422, "bad_input", reason=in_words(error)) from error
    except IntegrityError as error:
        raise Problem(409, "made_meanwhile") from error


def caller(visitor: Visitor) -> str:
    """Who asks, as the journal names them."""
    return f"key:{visitor.key.id}" if visitor.key else visitor.me.id


class Page(BaseModel):
    """`next` is the cursor of the page that follows; None: this was the last."""

    next: str | None


def existing(row: T | None) -> T:
    """A row that is there. Raises Problem."""
    if row is None:
        raise Problem(404, "not_found")
    return row
