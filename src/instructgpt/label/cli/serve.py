"""The commands `label init` and `label serve`.

instructgpt label init  --site site/
instructgpt label serve --site site/ --port 8000
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import uvicorn

from instructgpt.errors import InputError
from instructgpt.label import site_folder
from instructgpt.label.auth import accounts
from instructgpt.label.background import CounterCheckThread, schedule_warm_up
from instructgpt.label.configs import ENDPOINT_KEY_VARIABLE, InitConfig, ServeConfig, SiteOptions
from instructgpt.label.context import Site
from instructgpt.label.integrations.outbox import DeliveryThread
from instructgpt.label.outgoing import parse_network
from instructgpt.label.playground.chores import PlaygroundThread
from instructgpt.label.playground.endpoint import ModelEndpoint, ModelEndpointError, list_models_now
from instructgpt.label.playground.users import ensure_playground_link
from instructgpt.label.site_folder import create_site_folder, is_site_folder, open_site
from instructgpt.label.tasks import instructions
from instructgpt.label.web.app import create_app
from instructgpt.network import bind_socket, is_loopback, socket_url


def init(config: InitConfig) -> None:
    """Create a site's folder, tables and default texts, and print the link that creates the first owner."""
    if is_site_folder(config.site):
        raise InputError(f"--site {config.site}: is already a site; run 'instructgpt label serve --site {config.site}'")
    site = _create_site(config)
    try:
        base_url = config.public_url or "http://127.0.0.1:8000"
        print(f"created {config.site}; start it with: instructgpt label serve --site {config.site}")
        _print_setup_link(site, base_url)
    finally:
        site.database.close()
    _print_warnings(config.site)


def serve(config: ServeConfig) -> None:
    """Serve a site until it is stopped; create it first if it does not exist."""
    if not is_loopback(config.host) and config.public_url is None:
        print("the site is reachable from other machines without HTTPS: use a reverse proxy and set --public-url")
    site = _open_site(config) if is_site_folder(config.site) else _create_site(config, config=config)
    try:
        _run_server(site, config)
    finally:
        site.database.close()
    print("stopped; everything is saved")


def _run_server(site: Site, config: ServeConfig) -> None:
    server_config = uvicorn.Config(
        create_app(site),
        log_config=None,  # uvicorn's configuration would close all other log handlers of the process
        log_level="warning",
        access_log=False,  # URLs of invitations hold secrets
        server_header=False,
        timeout_graceful_shutdown=10,
    )
    with bind_socket(config.host, config.port) as listener:
        site_url = config.public_url or socket_url(listener, config.host)
        print(f"labelers' site: {site_url} (Ctrl-C stops it)", flush=True)
        _print_setup_link(site, site_url)
        if config.endpoint is not None:
            _print_playground_link(site, site_url)
        _print_warnings(config.site)
        # The playground's thread runs without an endpoint, too: retention does not depend on it.
        chores = CounterCheckThread(site), PlaygroundThread(site), DeliveryThread(site)
        schedule_warm_up()
        # uvicorn shuts down gracefully on Ctrl-C and then raises the signal again.
        with chores[0], chores[1], chores[2], contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(server_config).run(sockets=[listener])


def _serve_settings(config: ServeConfig) -> dict[str, Any]:
    return {
        "public_url": config.public_url,
        "second_factor": config.second_factor,
        "endpoint": config.endpoint,
        "endpoint_key": os.environ.get(ENDPOINT_KEY_VARIABLE) or None,
        "endpoint_models": config.endpoint_models,
        "retention_days": config.retention_days,
        "openid": config.build_openid_client(),
        "mail": config.mail_server(),
        "allowed_networks": tuple(parse_network(text) for text in config.allow_networks),
    }


def _create_site(options: SiteOptions, config: ServeConfig | None = None) -> Site:
    create_site_folder(options.site, options.database)
    try:
        site = open_site(options.site, options.database, **(_serve_settings(config) if config else {}))
        with site.database.write() as db:
            instructions.publish_default_texts(db)
    except InputError:  # without a usable database the folder is no site: the next attempt may choose another one
        (options.site / site_folder.SITE_FILE_NAME).unlink()
        raise
    return site


def _open_site(config: ServeConfig) -> Site:
    site = open_site(config.site, config.database, **_serve_settings(config))
    with site.database.write() as db:
        instructions.publish_default_texts(db)
    return site


def _print_setup_link(site: Site, base_url: str) -> None:
    with site.database.write() as db:
        token = accounts.create_owner_setup_token(db, keep_earlier=True)
    if token is not None:
        print(f"set it up once, within {accounts.SETUP_DAYS} days, at {base_url}/invite/{token}", flush=True)


def _print_playground_link(site: Site, base_url: str) -> None:
    """Print the link that admits users, and what is wrong with the endpoint: it may start after the site."""
    settings = site.settings
    with site.database.write() as db:
        link = ensure_playground_link(db)
    print(f"playground: {base_url}/playground/join/{link.token}", flush=True)
    try:
        models = list_models_now(ModelEndpoint(settings.endpoint or "", settings.endpoint_key))
    except ModelEndpointError as error:
        print(f"warning: --endpoint {settings.endpoint}: {error}; the playground works once it answers", flush=True)
        return
    if missing := [name for name in settings.endpoint_models if name not in models]:
        print(
            f"warning: --endpoint-models {', '.join(missing)}: the endpoint has {', '.join(models)}",
            flush=True,
        )


def _print_warnings(folder: Path) -> None:
    for warning in site_folder.iter_storage_warnings(folder):
        print(f"warning: {warning}", flush=True)
