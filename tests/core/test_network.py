"""Listening sockets of the servers."""

import socket
import threading

import pytest

from instructgpt.errors import InputError
from instructgpt.network import bind_socket, is_loopback, socket_url


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_connections_send_small_pieces_at_once(host):
    """A connection without TCP_NODELAY holds an event back until the client acknowledges the one before."""
    with bind_socket(host, 0) as listener:
        address = listener.getsockname()[:2]
        client = threading.Thread(target=lambda: socket.create_connection(address).close())
        client.start()
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        client.join()


def test_addresses_that_cannot_be_used():
    with bind_socket("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(InputError, match=rf"--host 127.0.0.1 --port {port}: cannot listen there .*another"):
            bind_socket("127.0.0.1", port)


def test_url():
    for host, expected in (("127.0.0.1", "http://127.0.0.1:"), ("::1", "http://[::1]:")):
        with bind_socket(host, 0) as listener:
            assert socket_url(listener, host) == f"{expected}{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", True), ("127.8.0.1", True), ("::1", True), ("10.0.0.1", False), ("example.org", False), ("", False)],
)
def test_is_loopback(host, expected):
    assert is_loopback(host) is expected
