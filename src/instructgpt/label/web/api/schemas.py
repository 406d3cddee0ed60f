"""What the service API's routes share: bodies without characters that databases refuse, cursors, and errors that say what to mend."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, model_validator

from instructgpt.label.auth.dependencies import Principal, require
from instructgpt.label.tasks.ingest import replace_unstorable

ReadScope = Annotated[Principal, require("owner", scope="read")]
WriteScope = Annotated[Principal, require("owner", scope="write")]
AdminScope = Annotated[Principal, require("owner", scope="admin")]
"""Who may: a key with the scope, or an owner who is signed in."""


class RequestModel(BaseModel):
    """Bodies of requests: what is not asked for is refused, and so are texts that no database can hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _reject_unstorable(cls, value: Any) -> Any:
        if fault := find_unstorable(value):
            raise ValueError(fault)
        return value


def find_unstorable(value: Any) -> str | None:
    """What a database would refuse in a text, or in anything made of texts."""
    if isinstance(value, str):
        if "\x00" in value:
            return "a text holds a NUL character (U+0000)"
        return "a text holds half a surrogate pair" if any("\ud800" <= letter <= "\udfff" for letter in value) else None
    items = (
        [*value.keys(), *value.values()]
        if isinstance(value, dict)
        else value
        if isinstance(value, list | tuple)
        else ()
    )
    return next((fault for part in items if (fault := find_unstorable(part))), None)


def sanitize(value: Any) -> Any:
    """A model's output may hold any character: each text in it as a database keeps it."""
    if isinstance(value, str):
        return replace_unstorable(value)
    if isinstance(value, dict):
        return {replace_unstorable(str(name)): sanitize(part) for name, part in value.items()}
    return [sanitize(part) for part in value] if isinstance(value, list) else value


def caller_id(principal: Principal) -> str:
    """Who asks, as the journal names them."""
    return f"key:{principal.api_key.id}" if principal.api_key else principal.signed_in_person.id


class CursorPage(BaseModel):
    """`next` is the cursor of the page that follows; None: this was the last."""

    next: str | None
