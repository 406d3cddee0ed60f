"""The site as the rest of the code sees it: its settings and its database."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from instructgpt.label.db.database import Database


@dataclass(frozen=True, slots=True)
class Settings:
    """What an owner decides when the site starts. Times in minutes unless said otherwise."""

    folder: Path
    public_url: str | None = None
    """The address people type, when a proxy stands in front; None: http://localhost or whatever host is asked for."""
    rank_lease: int = 30
    write_lease: int = 90
    """Demonstrations and prompts."""
    edit_window: int = 24 * 60
    """How long a submission can be edited or undone by the labeler."""
    skips_to_review: int = 3
    idle_hours: int = 12
    absolute_days: int = 14

    @property
    def secure(self) -> bool:
        """Whether people come over https, so that cookies can insist on it."""
        return self.public_url is not None and self.public_url.startswith("https:")


@dataclass(frozen=True, slots=True)
class Site:
    """A running site."""

    settings: Settings
    database: Database
