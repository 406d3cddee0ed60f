"""Addresses that servers listen on."""

from __future__ import annotations

import ipaddress
import socket

from instructgpt.errors import InputError

_BACKLOG = 2_048


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is this machine's own."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind_socket(host: str, port: int) -> socket.socket:
    """Return a listening TCP socket whose connections send small pieces at once.

    Raises:
        InputError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"--host {host} --port {port}: cannot listen there ({reason}); try another address or port"
        ) from error
    # Connections inherit it. asyncio sets it on sockets that it makes itself, not on those of a listener that it gets;
    # without it each event of a stream waits until the client acknowledges the one before, up to 40 ms later.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def socket_url(listener: socket.socket, host: str) -> str:
    """Return the address of a listening socket as clients write it."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
