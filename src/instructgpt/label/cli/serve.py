"""The commands `label init` and `label serve`.

instructgpt label init  --site site/
instructgpt label serve --site site/ --port 8000
"""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import uvicorn
from pydantic import Field, field_validator

from instructgpt.config import CommandConfig
from instructgpt.errors import InputError
from instructgpt.label.auth import accounts
from instructgpt.label.background import CounterCheckThread
from instructgpt.label.context import Site
from instructgpt.label.site_folder import (
    SITE_FILE_NAME,
    create_site_folder,
    is_site_folder,
    iter_storage_warnings,
    open_site,
)
from instructgpt.label.tasks import instructions
from instructgpt.label.web.app import create_app


class SiteOptions(CommandConfig):
    """What every command on a site can be told."""

    site: Path = Field(description="the site's folder")
    database: str | None = Field(
        None,
        description="sqlite:///FILE or postgresql://USER@HOST/NAME, chosen once when the site is made; site.db in the folder if not given",
    )

    public_url: str | None = Field(
        None,
        description="the address people type, such as https://labels.example.org, when a proxy stands in front of the site",
    )

    @field_validator("public_url")
    @classmethod
    def _validate_public_url(cls, value: str | None) -> str | None:
        return value if value is None else _parse_base_url(value)


class InitConfig(SiteOptions):
    """A new site."""

    stage: ClassVar[str] = "label init"


class ServeConfig(SiteOptions):
    """A site that runs."""

    stage: ClassVar[str] = "label serve"

    host: str = Field("127.0.0.1", description="the address to listen on; 0.0.0.0 is all of this machine's")
    port: int = Field(8000, ge=0, le=65_535, description="the port to listen on; 0 takes a free one")


def _parse_base_url(value: str) -> str:
    """An address without its last slash. Raises ValueError unless it is http(s)://HOST."""
    parts = urlsplit(value)
    if (
        parts.scheme not in ("http", "https")
        or not parts.netloc
        or parts.path not in ("", "/")
        or parts.query
        or "@" in parts.netloc
    ):
        raise ValueError("expected https://HOST, without a path")
    return f"{parts.scheme}://{parts.netloc}"


def init(config: InitConfig) -> None:
    """Make a site: its folder, its tables, its first texts; print the link that makes the first owner."""
    if is_site_folder(config.site):
        raise InputError(
            f"--site {config.site}: is a site already; 'instructgpt label serve --site {config.site}' opens it"
        )
    site = _create_site(config)
    try:
        base_url = config.public_url or "http://127.0.0.1:8000"
        print(f"made {config.site}; start it with: instructgpt label serve --site {config.site}")
        _print_setup_link(site, base_url)
    finally:
        site.database.close()
    _print_warnings(config.site)


def serve(config: ServeConfig) -> None:
    """Serve a site until it is stopped; one that was never made is made first."""
    if config.host not in ("127.0.0.1", "localhost", "::1") and config.public_url is None:
        print(
            "listening beyond this machine without https: put a proxy with https in front and name it with --public-url"
        )
    site = _open_site(config) if is_site_folder(config.site) else _create_site(config, public_url=config.public_url)
    try:
        _run_server(site, config)
    finally:
        site.database.close()
    print("stopped; everything is saved")


def _run_server(site: Site, config: ServeConfig) -> None:
    """Listen and answer. Being asked to end lets running requests finish."""
    server_config = uvicorn.Config(
        create_app(site),
        log_config=None,  # uvicorn's own would close the handlers of everything else in the process
        log_level="warning",
        access_log=False,  # links hold secrets
        server_header=False,
        timeout_graceful_shutdown=10,
    )
    with _bind_socket(config) as listener:
        host = f"[{config.host}]" if ":" in config.host else config.host
        base_url = config.public_url or f"http://{host}:{listener.getsockname()[1]}"
        print(f"labelers' site: {base_url} (Ctrl-C stops it)", flush=True)
        _print_setup_link(site, base_url)
        _print_warnings(config.site)
        # Ctrl-C: the server has stopped in order by then, and passes on what it was told.
        with CounterCheckThread(site), contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(server_config).run(sockets=[listener])


def _bind_socket(config: ServeConfig) -> socket.socket:
    """The socket the site answers on.

    Raises:
        BadInput: the port is taken, or the address is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=2_048)
    except OSError as error:
        raise InputError(
            f"--host {config.host} --port {config.port}: cannot listen there ({error.strerror or error}); try another"
        ) from error


def _create_site(config: SiteOptions, public_url: str | None = None) -> Site:
    """A new site. A folder is noted as one only when its database can be reached."""
    database_url = config.database
    create_site_folder(config.site, database_url)
    try:
        site = open_site(config.site, database_url, public_url=public_url)
        with site.database.write() as db:
            instructions.publish_default_texts(db)
    except InputError:
        (config.site / SITE_FILE_NAME).unlink()
        raise
    return site


def _open_site(config: ServeConfig) -> Site:
    site = open_site(config.site, config.database, public_url=config.public_url)
    with site.database.write() as db:
        instructions.publish_default_texts(db)
    return site


def _print_setup_link(site: Site, base_url: str) -> None:
    """The link that makes the first owner, while there is none."""
    with site.database.write() as db:
        token = accounts.create_owner_setup_token(db)
    if token is not None:
        print(f"set it up here, once, within {accounts.SETUP_DAYS} days: {base_url}/invite/{token}", flush=True)


def _print_warnings(folder: Path) -> None:
    for warning in iter_storage_warnings(folder):
        print(f"warning: {warning}", flush=True)
