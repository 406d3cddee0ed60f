"""The guard of outgoing requests, attacked: forms of addresses, rebinding names, redirects, slow and endless answers.

pytest tests/label/test_outgoing.py
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from ipaddress import ip_address

import pytest
from support.certificates import make_certificate
from support.receiver import receiving_server

from instructgpt.label.outgoing import OutgoingError, check_url, is_public, parse_network, send_request

LOOPBACK = (parse_network("127.0.0.0/8"),)


@pytest.fixture
def receiver():
    with receiving_server() as server:
        yield server


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "017700000001",
        "0177.0.0.01",
        "0",
        "0.0.0.0",
        "localhost",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[2001:0:7f00:1::]",
    ],
)
def test_no_form_of_the_loopback_address_reaches_this_machine(host, receiver):
    for scheme in ("http", "https"):
        with pytest.raises(OutgoingError, match=r"not public|cannot be resolved"):
            send_request("GET", f"{scheme}://{host}:{receiver.port}/", total_seconds=3)
    assert not receiver.received


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        # IANA's registries of special-purpose addresses, and clouds' metadata services
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("172.32.0.1", True),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("100.100.100.200", False),
        ("169.254.169.254", False),
        ("169.254.170.2", False),
        ("192.0.0.192", False),
        ("192.0.2.1", False),
        ("198.18.0.1", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("8.8.8.8", True),
        ("fe80::1", False),
        ("fec0::1", False),
        ("fc00::1", False),
        ("fd00:ec2::254", False),
        ("ff02::1", False),
        ("2001:db8::1", False),
        ("::ffff:169.254.169.254", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b::808:808", True),
        ("64:ff9b:1::1", False),
        ("2002:a9fe:a9fe::1", False),
        ("2001:0:808:808::1", False),
        ("3fff::1", False),
        ("2606:4700::1111", True),
    ],
)
def test_special_addresses_are_not_public(address, expected):
    assert is_public(ip_address(address)) is expected


def _resolve_to(monkeypatch, *answers):
    """Make every name resolve to these addresses, one answer a call; the last one stays."""
    calls = []
    real = socket.getaddrinfo

    def resolve(host, port, *args, **more):
        if host.replace(".", "").isdigit():  # the connection to a checked address
            return real(host, port, *args, **more)
        calls.append(host)
        addresses = answers[min(len(calls), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return calls


def test_a_name_is_resolved_once_and_its_address_kept(monkeypatch, receiver):
    """The second answer leads to a server on the same port, which a client that resolves again would reach."""
    with receiving_server(host="127.0.0.2", port=receiver.port) as second:
        calls = _resolve_to(monkeypatch, ["127.0.0.2"], ["127.0.0.1"])
        url = f"http://rebinding.test:{second.port}/hook"
        allowed = (parse_network("127.0.0.2/32"),)
        assert send_request("POST", url, body=b"{}", allowed_networks=allowed).status == 200
        assert calls == ["rebinding.test"]
        with pytest.raises(OutgoingError, match="not public"):  # the next request is checked anew
            send_request("POST", url, body=b"{}", allowed_networks=allowed)
    assert [request.headers["host"] for request in second.received] == [f"rebinding.test:{receiver.port}"]
    assert not receiver.received


def test_a_name_with_one_private_address_is_refused(monkeypatch, receiver):
    _resolve_to(monkeypatch, ["93.184.216.34", "127.0.0.1"])
    with pytest.raises(OutgoingError, match=r"127\.0\.0\.1, which is not public"):
        send_request("GET", f"https://mixed.test:{receiver.port}/")
    assert not receiver.received


def test_a_public_name_needs_tls(monkeypatch):
    _resolve_to(monkeypatch, ["93.184.216.34"])
    with pytest.raises(OutgoingError, match="must begin with https"):
        send_request("GET", "http://public.test/")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status, receiver):
    with receiving_server(reply=lambda _: (status, {"Location": f"{receiver.url}/secret"}, b"")) as redirecting:
        answer = send_request("POST", redirecting.url, body=b"{}", allowed_networks=LOOPBACK)
    assert answer.status == status
    assert not receiver.received


def test_an_endless_answer_is_cut(receiver):
    receiver.reply = lambda _: (200, {}, b"x" * 2_000_000)
    with pytest.raises(OutgoingError, match="longer than"):
        send_request("GET", receiver.url, allowed_networks=LOOPBACK)


def test_a_compressed_answer_is_not_unpacked(receiver):
    receiver.reply = lambda _: (200, {"Content-Encoding": "gzip"}, b"\x1f\x8bbomb")
    assert send_request("GET", receiver.url, allowed_networks=LOOPBACK).body == b"\x1f\x8bbomb"


def _drip(listener, part):
    """Send a part of an answer, then a byte every tenth of a second."""
    connection, _ = listener.accept()
    with connection, contextlib.suppress(OSError):
        connection.sendall(part)
        while True:
            time.sleep(0.1)
            connection.sendall(b"x")


@pytest.mark.parametrize("part", [b"H", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"])
def test_an_answer_byte_by_byte_ends_in_time(part):
    """Each read comes in time; all of them together do not."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_drip, args=(listener, part), daemon=True)
        thread.start()
        started = time.monotonic()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with pytest.raises(OutgoingError, match="within 1 seconds"):
            send_request("GET", url, allowed_networks=LOOPBACK, total_seconds=1)
        assert time.monotonic() - started < 3
        thread.join(5)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org/",
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
        "//example.org",
        "https://",
        "https://user:password@example.org/",
        "https://example.org@127.0.0.1/",
        "https://exa mple.org/",
        "https://example.org/\r\nHost: other",
        "https://ex\u00e4mple.org/",
        "https://example.org:99999/",
        "https://[::1/",
        "",
    ],
)
def test_addresses_that_are_no_targets(url):
    with pytest.raises(OutgoingError):
        check_url(url)
    with pytest.raises(OutgoingError):
        send_request("GET", url)


@pytest.mark.parametrize("text", ["0.0.0.0/0", "0.0.0.0/1", "::/0", "ten", "10.0.0.1/8", ""])
def test_networks_that_cannot_be_allowed(text):
    with pytest.raises(ValueError, match="expected"):
        parse_network(text)


def test_an_allowed_network_does_not_open_others(receiver):
    with pytest.raises(OutgoingError, match="not public"):
        send_request("GET", receiver.url, allowed_networks=(parse_network("10.0.0.0/8"),))
    assert send_request("GET", receiver.url, allowed_networks=(parse_network("127.0.0.1"),)).status == 200


def test_proxies_of_the_environment_are_not_used(monkeypatch, receiver):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert send_request("GET", receiver.url, allowed_networks=LOOPBACK).status == 200


def test_the_certificate_is_that_of_the_name_and_not_of_the_address(tmp_path, monkeypatch):
    server, path = make_certificate(tmp_path, "hooks.test")
    client = ssl.create_default_context(cafile=path)
    _resolve_to(monkeypatch, ["127.0.0.1"])
    with receiving_server(tls=server) as receiver:
        options = {"allowed_networks": LOOPBACK, "tls_context": client}
        assert send_request("GET", f"https://hooks.test:{receiver.port}/", **options).status == 200
        with pytest.raises(OutgoingError, match="CERTIFICATE_VERIFY_FAILED"):
            send_request("GET", f"https://other.test:{receiver.port}/", **options)
        with pytest.raises(OutgoingError, match="CERTIFICATE_VERIFY_FAILED"):
            send_request("GET", f"https://hooks.test:{receiver.port}/", allowed_networks=LOOPBACK)
