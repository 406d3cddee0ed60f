"""The declarative base of all tables: constraint names, ids, time, enumerated columns."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable
from typing import Any, ClassVar
from uuid import uuid4

from sqlalchemy import JSON, BigInteger, CheckConstraint, MetaData
from sqlalchemy.orm import DeclarativeBase


class Base(DeclarativeBase):
    """The base class of all tables. Named constraints can be migrated on both databases."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {int: BigInteger, dict[str, Any]: JSON, list[str]: JSON}


DAY_MS = 86_400_000


def current_time_ms() -> int:
    return time.time_ns() // 1_000_000


def new_id() -> str:
    """Return a UUID version 7 (RFC 9562, section 5.7): 48 bits of time, then random bits."""
    value = (current_time_ms() << 80) | (0x7 << 76) | (secrets.randbits(12) << 64) | (0b10 << 62) | secrets.randbits(62)
    text = f"{value:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def new_random_id() -> str:
    """Return a UUID version 4, for rows whose order of creation must stay hidden from the reader of the id."""
    return str(uuid4())


def is_id(text: str) -> bool:
    """Return whether untrusted text has the form of an id, before it reaches a query."""
    return re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text) is not None


def choices_constraint(column: str, choices: Iterable[str]) -> CheckConstraint:
    """Build the CHECK of a column with few values."""
    quoted = ", ".join(f"'{word}'" for word in choices)
    return CheckConstraint(f"{column} IN ({quoted})", name=column)
