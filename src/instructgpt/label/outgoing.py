"""Requests that the site itself sends, to webhooks and to providers of sign-ins, guarded against forged targets (SSRF).

Only public addresses are reached, and private networks that the operator allows. A name is resolved once, every address
of it is checked, and the connection goes to a checked address: a name that resolves differently the next time cannot
lead elsewhere. Redirects are not followed, proxies of the environment are not used, and a request has limits of time
and size. The name stays the one that TLS certificates are checked against.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

import httpcore

Network = IPv4Network | IPv6Network
_Address = IPv4Address | IPv6Address
_NAT64_NETWORK = ip_network("64:ff9b::/96")  # RFC 6052: an IPv4 address is the last four bytes
# Special in IANA's registries, but public to `ipaddress` of some Python versions. 192.0.0.192 is a metadata service.
_SPECIAL_NETWORKS = tuple(
    ip_network(text)
    for text in ("192.0.0.0/24", "192.88.99.0/24", "64:ff9b:1::/48", "2001::/23", "3fff::/20", "5f00::/16", "fec0::/10")
)
_TOTAL_SECONDS = 10.0
_MAX_ANSWER_BYTES = 256 * 1024
_WIDEST_PREFIX = {4: 8, 6: 16}  # a wider network would cover private, loopback and metadata addresses at once
_RESOLVER = ThreadPoolExecutor(4, "resolver")  # getaddrinfo has no time limit of its own
_IO_ERRORS = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, httpcore.UnsupportedProtocol)


class OutgoingError(Exception):
    """A request that was refused, or failed without an answer; the text is for the owner."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request; a redirect is an answer too."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes


def parse_network(text: str) -> Network:
    """Return a network such as `10.2.0.0/16`, or a single address. Raises ValueError, also for one that is too wide."""
    try:
        network = ip_network(text.strip())
    except ValueError as error:
        raise ValueError(f"'{text}' is no network; expected one such as 10.2.0.0/16 or fd00:1::/32") from error
    if network.prefixlen < _WIDEST_PREFIX[network.version]:
        widest = _WIDEST_PREFIX[network.version]
        raise ValueError(f"'{text}' is too wide; expected at least /{widest}, one network for each range to reach")
    return network


def check_url(url: str) -> None:
    """Raise OutgoingError for an address that could never be a target: another scheme, no host, a user name."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise OutgoingError(f"not an address: {error}") from error
    if parts.scheme not in ("https", "http"):
        raise OutgoingError("the address must begin with https://")
    if not parts.hostname or "@" in parts.netloc or port == 0:
        raise OutgoingError("the address must have a host and no user name")
    if not url.isascii() or any(character.isspace() or not character.isprintable() for character in url):
        raise OutgoingError("the address must be ASCII without spaces; encode other characters")


def is_public(address: _Address) -> bool:
    """Return whether an address belongs to the public internet, looking into those that hold an IPv4 address."""
    if (embedded := _embedded_address(address)) is not None:
        return is_public(embedded)
    is_special = address.is_multicast or address.is_reserved or any(address in network for network in _SPECIAL_NETWORKS)
    return address.is_global and not is_special


def _embedded_address(address: _Address) -> IPv4Address | None:
    """Return the IPv4 address that an IPv6 address leads to: mapped (RFC 4291), 6to4 (RFC 3056) or NAT64 (RFC 6052)."""
    if isinstance(address, IPv4Address):
        return None
    if address in _NAT64_NETWORK:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def is_allowed(address: _Address, allowed_networks: Sequence[Network]) -> bool:
    """Return whether a network of the operator covers an address."""
    embedded = _embedded_address(address)
    return any(each in network for each in (address, embedded) if each is not None for network in allowed_networks)


def resolve_target(host: str, port: int, allowed_networks: Sequence[Network], *, secure: bool, timeout: float) -> str:
    """Resolve a host and return an address to connect to.

    Args:
        secure: the connection will be encrypted; others are for allowed networks only.

    Raises:
        OutgoingError: the name does not resolve, or any of its addresses must not be reached.
    """
    try:
        future = _RESOLVER.submit(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        entries = future.result(timeout=max(0.0, timeout))
    except TimeoutError as error:  # an OSError too
        raise OutgoingError(f"the name {host} could not be resolved in time") from error
    except (OSError, UnicodeError) as error:
        raise OutgoingError(f"the name {host} cannot be resolved ({error})") from error
    # One refused address refuses the name: whoever mixes public and private ones is trying the guard.
    addresses = [ip_address(str(entry[4][0]).partition("%")[0]) for entry in entries]
    for address in addresses:
        if not is_allowed(address, allowed_networks) and not is_public(address):
            raise OutgoingError(f"{host} leads to {address}, which is not public; the operator can allow its network")
    if not addresses:
        raise OutgoingError(f"the name {host} has no address")
    if not secure and not all(is_allowed(address, allowed_networks) for address in addresses):
        raise OutgoingError(f"{host} is public: its address must begin with https://")
    return str(addresses[0])


class _TimedStream(httpcore.NetworkStream):
    """A connection whose reads and writes together end at a deadline, however slowly the other side sends."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        return self._stream.read(max_bytes, _remaining_seconds(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        self._stream.write(buffer, _remaining_seconds(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        stream = self._stream.start_tls(ssl_context, server_hostname, _remaining_seconds(self._deadline))
        return _TimedStream(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _GuardedBackend(httpcore.NetworkBackend):
    """Connects to the address that was checked, once for each request."""

    def __init__(self, allowed_networks: Sequence[Network], deadline: float, *, secure: bool) -> None:
        self._allowed_networks, self._deadline, self._secure = allowed_networks, deadline, secure
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002
        local_address: str | None = None,  # noqa: ARG002
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        seconds = _remaining_seconds(self._deadline)
        target = resolve_target(host, port, self._allowed_networks, secure=self._secure, timeout=seconds)
        stream = self._backend.connect_tcp(target, port, _remaining_seconds(self._deadline))
        return _TimedStream(stream, self._deadline)


def _remaining_seconds(deadline: float) -> float:
    """Return the seconds to a deadline. Raises httpcore.ReadTimeout after it."""
    if (seconds := deadline - time.monotonic()) <= 0:
        raise httpcore.ReadTimeout("out of time")
    return seconds


@cache
def _tls_context() -> ssl.SSLContext:
    return ssl.create_default_context()


def send_request(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    allowed_networks: Sequence[Network] = (),
    total_seconds: float = _TOTAL_SECONDS,
    tls_context: ssl.SSLContext | None = None,
) -> Answer:
    """Send one request and return its answer, whatever its status.

    Args:
        allowed_networks: networks that are not public and may be reached, also without TLS.
        total_seconds: for everything: name, connection, TLS, request and answer.
        tls_context: by default the system's certificate authorities.

    Raises:
        OutgoingError: the target is refused, no answer came in time, or it is too long.
    """
    check_url(url)
    deadline, parts = time.monotonic() + total_seconds, urlsplit(url)
    backend = _GuardedBackend(allowed_networks, deadline, secure=parts.scheme == "https")
    # No decompression, and the connection is not used again: its address was checked for this request.
    fixed_headers = {"Host": parts.netloc, "Accept-Encoding": "identity", "Connection": "close"}
    all_headers = [*fixed_headers.items(), *(headers or {}).items()]
    if body or method == "POST":
        all_headers.append(("Content-Length", str(len(body))))
    try:
        with (
            httpcore.ConnectionPool(ssl_context=tls_context or _tls_context(), network_backend=backend) as pool,
            pool.stream(method, url, headers=all_headers, content=body) as stream,
        ):
            content = bytearray()
            for chunk in stream.iter_stream():
                content += chunk
                if len(content) > _MAX_ANSWER_BYTES:
                    raise OutgoingError(f"the answer is longer than {_MAX_ANSWER_BYTES // 1024} KiB")
            names = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in stream.headers}
            return Answer(stream.status, names, bytes(content))
    except httpcore.TimeoutException as error:
        raise OutgoingError(f"no complete answer within {total_seconds:g} seconds") from error
    except _IO_ERRORS as error:
        raise OutgoingError(f"no answer ({error or type(error).__name__})") from error
