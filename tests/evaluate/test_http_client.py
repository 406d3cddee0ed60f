"""The HTTP client: retries, outages, limits, and secrets."""

import threading
import time
from email.utils import formatdate

import pytest
from support.endpoint import serving

from instructgpt.errors import InputError, RunError
from instructgpt.evaluate.judges import http_client
from instructgpt.evaluate.judges.http_client import (
    MAX_CONSECUTIVE_FAILURES,
    Endpoint,
    EndpointError,
    post_all,
)


def fast(service, **options):
    return Endpoint(service.url, **({"backoff_s": 0.01, "timeout_s": 5.0} | options))


def doubled(answer):
    return answer["number"] * 2


def post_numbers(endpoint, count, read=doubled):
    return dict(post_all(endpoint, "double", {i: {"number": i} for i in range(count)}, read))


def post_one(endpoint, path, payload, parse=doubled):
    ((_, result),) = post_all(endpoint, path, {0: payload}, parse)
    return result


def echo(service, payload):  # noqa: ARG001
    return {"number": payload["number"]}


@pytest.fixture
def waits(monkeypatch):
    """Record the waits between attempts, in seconds, instead of sleeping."""
    recorded = []

    class RecordingEvent(threading.Event):
        def wait(self, timeout=None):
            recorded.append(timeout)
            return self.is_set()

    client_class = http_client._RetryingClient
    monkeypatch.setattr(http_client, "_RetryingClient", lambda *args: client_class(*args, closed=RecordingEvent()))
    return recorded


def test_answers_match_requests_and_concurrency_is_limited():
    def slowly(service, payload):
        time.sleep(0.02)
        return echo(service, payload)

    with serving(slowly) as service:
        assert post_numbers(fast(service, max_concurrency=3), 20) == {i: 2 * i for i in range(20)}
    assert service.max_active == 3
    assert set(service.paths) == {"/v1/double"}
    assert service.keys == [None] * 20


@pytest.mark.parametrize(
    "failure",
    [
        (500, {}, b"oh"),
        (503, {}, b""),
        (429, {"Retry-After": "0"}, b"{}"),
        (200, {}, b"<html>"),
        (200, {}, b'{"other": 1}'),
        (200, {}, b"[]"),
        None,
    ],
)
def test_temporary_failures_are_retried(failure):
    def respond(service, payload):
        return failure if service.payloads.count(payload) < 3 else echo(service, payload)

    with serving(respond) as service:
        assert post_numbers(fast(service), 2) == {0: 0, 1: 2}
    assert len(service.payloads) == 6


def test_retry_after_delays_every_request(waits):
    def respond(service, payload):
        return (429, {"Retry-After": "60"}, b"slow down") if len(service.payloads) == 1 else echo(service, payload)

    with serving(respond) as service:
        post_numbers(fast(service, max_concurrency=1), 3)
    assert len(service.payloads) == 4
    assert len([seconds for seconds in waits if seconds > 1]) == 3  # before the retry and before the other two requests


@pytest.mark.parametrize(
    "written", [str, lambda seconds: formatdate(time.time() + seconds, usegmt=True)], ids=["seconds", "date"]
)
def test_long_retry_after_stops_the_command(written, waits):
    with (
        serving(lambda *_: (429, {"Retry-After": written(3600)}, b"")) as service,
        pytest.raises(RunError, match=r"asks to wait 3[56]\d\d s"),
    ):
        post_numbers(fast(service), 3)
    assert len(service.payloads) <= 3  # no request is repeated
    assert waits == []


@pytest.mark.parametrize("after", ["soon", "-5", ""])
def test_invalid_retry_after_uses_the_default_backoff(after):
    def respond(service, payload):
        return (429, {"Retry-After": after}, b"") if len(service.payloads) == 1 else echo(service, payload)

    with serving(respond) as service:
        assert post_one(fast(service), "", {"number": 4}) == 8
    assert service.paths == ["/v1", "/v1"]


def test_exhausted_retries_are_an_error_not_a_value():
    with serving(
        lambda service, payload: (500, {}, b"no") if payload["number"] == 3 else echo(service, payload)
    ) as service:
        found = post_numbers(fast(service, max_attempts=3), 8)
    assert isinstance(found.pop(3), EndpointError)
    assert found == {i: 2 * i for i in range(8) if i != 3}
    assert len(service.payloads) == 7 + 3


def test_client_error_is_not_retried():
    with serving(
        lambda service, payload: (400, {}, b"too long") if payload["number"] == 3 else echo(service, payload)
    ) as service:
        found = post_numbers(fast(service), 5)
    assert "answers 400 (too long)" in str(found[3])
    assert len(service.payloads) == 5


@pytest.mark.parametrize(("status", "complaint"), [(401, "the key"), (404, "model's name"), (307, "has moved")])
def test_permanent_error_stops_after_one_request(status, complaint):
    with (
        serving(lambda *_: (status, {"Location": "http://127.0.0.1:1/"}, b"")) as service,
        pytest.raises(RunError, match=complaint),
    ):
        post_numbers(fast(service, max_concurrency=1), 10)
    assert len(service.payloads) == 1


def test_answers_before_an_outage_are_kept():
    results = {}

    def keep_all(endpoint):
        for key, result in post_all(endpoint, "", {i: {"number": i} for i in range(30)}, doubled):
            results[key] = result  # noqa: PERF403

    with serving(
        lambda service, payload: echo(service, payload) if payload["number"] < 5 else (503, {}, b"")
    ) as service:
        with pytest.raises(RunError, match="5 of 30 requests were answered"):
            keep_all(fast(service, max_attempts=2, max_concurrency=1))
        assert len(service.payloads) == 5 + 2 * MAX_CONSECUTIVE_FAILURES
    assert {key: result for key, result in results.items() if not isinstance(result, EndpointError)} == {
        i: 2 * i for i in range(5)
    }


def test_unreachable_service_is_reported_in_one_line():
    with serving(echo) as service:
        gone = fast(service, max_attempts=2)
    with pytest.raises(RunError, match="cannot be reached") as raised:
        post_numbers(gone, 3)
    assert "\n" not in str(raised.value)


def test_timeout_stops_after_the_retries():
    def respond(service, payload):  # noqa: ARG001
        time.sleep(0.5)
        return {"number": 0}

    with serving(respond) as service, pytest.raises(RunError, match=r"no answer within 0\.05 s \(tried 2 times\)"):
        post_numbers(fast(service, timeout_s=0.05, max_attempts=2), 4)
    assert len(service.payloads) <= 4 * 2


def test_key_is_sent_and_never_shown(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", " secret-1\n")
    with serving(lambda *_: (401, {}, b"wrong key: secret-1")) as service:
        endpoint = Endpoint.from_url(service.url, "JUDGE_KEY")
        with pytest.raises(RunError) as raised:
            post_numbers(endpoint, 1)
    assert service.keys == ["Bearer secret-1"]
    assert "secret-1" not in str(raised.value) + repr(endpoint) + endpoint.name


def test_url_parameters_are_sent_and_never_shown():
    with serving(echo) as service:
        endpoint = Endpoint(service.url + "?code=hidden")
        assert post_one(endpoint, "chat", {"number": 1}) == 2
    assert service.paths == ["/v1/chat?code=hidden"]
    assert endpoint.name == service.url


@pytest.mark.parametrize(
    ("url", "variable", "complaint"),
    [
        ("localhost:8000", None, "invalid address"),
        ("ftp://a/b", None, "invalid address"),
        ("http://", None, "invalid address"),
        ("http://me:pass@host/v1", None, "must hold no password"),
        ("http://host", "NO_SUCH_KEY", "NO_SUCH_KEY"),
    ],
)
def test_invalid_address_or_missing_key_is_reported_in_one_line(url, variable, complaint, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(InputError, match=complaint) as raised:
        Endpoint.from_url(url, variable)
    assert "pass@" not in str(raised.value)
