"""A running site: its settings and its database."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from instructgpt.label.db.database import Database
from instructgpt.label.mail_server import MailServer
from instructgpt.label.openid import OpenIDClient
from instructgpt.label.outgoing import Network
from instructgpt.label.report_cache import ReportCache
from instructgpt.label.vocabulary import SecondFactorPolicy


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of `label serve`. Leases and the edit window are in minutes."""

    folder: Path
    public_url: str | None = None  # the URL behind a proxy; None: any host
    rank_lease: int = 30
    write_lease: int = 90  # also for demonstrations
    edit_window: int = 24 * 60  # how long labelers can edit or undo a submission
    skips_to_review: int = 3
    idle_hours: int = 12
    absolute_days: int = 14
    second_factor: SecondFactorPolicy = "optional"
    endpoint: str | None = None  # of the playground; None: the site has no playground
    endpoint_key: str | None = field(default=None, repr=False)
    endpoint_models: tuple[str, ...] = ()  # offered in the playground; empty: all of the endpoint
    retention_days: int = 365  # of the playground's turns that are in no batch
    openid: OpenIDClient | None = None
    mail: MailServer | None = None
    allowed_networks: tuple[
        Network, ...
    ] = ()  # that webhooks and sign-in providers may reach, besides public addresses

    @property
    def base_path(self) -> str:
        """The sub path of the public URL, such as `/label`; empty at the root of a host."""
        return urlsplit(self.public_url or "").path.rstrip("/")

    @property
    def secure(self) -> bool:
        """Whether labelers use HTTPS, which cookies then require."""
        return self.public_url is not None and self.public_url.startswith("https:")


@dataclass(frozen=True, slots=True)
class Site:
    settings: Settings
    database: Database
    reports: ReportCache[Any] = field(default_factory=ReportCache, compare=False)  # of pages, by their name and batches
