"""Asking a service that is slow, overworked, confused or gone: bounded, in one line, nothing lost and nothing made up."""

import time
from email.utils import formatdate

import pytest
from support.endpoint import serving

from instructgpt.errors import InputError, RunError
from instructgpt.evaluate.judges.http_client import (
    MAX_CONSECUTIVE_FAILURES,
    Endpoint,
    EndpointError,
    post_all,
    post_json,
)


def quick(service, **how):
    return Endpoint(service.url, **({"backoff_s": 0.01, "timeout_s": 5.0} | how))


def doubled(answer):
    return answer["number"] * 2


def all_of(endpoint, count, read=doubled):
    return dict(post_all(endpoint, "double", {i: {"number": i} for i in range(count)}, read))


def echo(service, question):  # noqa: ARG001
    return {"number": question["number"]}


def test_every_question_is_answered_with_its_own_answer_a_few_at_a_time():
    def slowly(service, question):  # noqa: ARG001
        time.sleep(0.02)
        return {"number": question["number"]}

    with serving(slowly) as service:
        assert all_of(quick(service, max_concurrency=3), 20) == {i: 2 * i for i in range(20)}
    assert service.most == 3
    assert set(service.paths) == {"/v1/double"}
    assert service.keys == [None] * 20


@pytest.mark.parametrize(
    "trouble",
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
def test_what_goes_wrong_twice_is_asked_a_third_time(trouble):
    def told(service, question):
        return trouble if sum(asked == question for asked in service.asked) < 3 else {"number": question["number"]}

    with serving(told) as service:
        assert all_of(quick(service), 2) == {0: 0, 1: 2}
    assert len(service.asked) == 6


def test_a_service_that_wants_a_pause_gets_it_from_everybody():
    def told(service, question):
        return (429, {"Retry-After": "1"}, b"slow down") if len(service.asked) == 1 else {"number": question["number"]}

    with serving(told) as service:
        all_of(quick(service, max_concurrency=1), 3)
    assert service.times[1] - service.times[0] >= 1


@pytest.mark.parametrize(
    "written", [str, lambda seconds: formatdate(time.time() + seconds, usegmt=True)], ids=["seconds", "date"]
)
def test_a_service_that_wants_an_hour_is_not_waited_for(written):
    begun, after = time.monotonic(), written(3600)
    with (
        serving(lambda *_: (429, {"Retry-After": after}, b"")) as service,
        pytest.raises(RunError, match=r"asks to wait 3[56]\d\d s"),
    ):
        all_of(quick(service), 3)
    assert time.monotonic() - begun < 4


@pytest.mark.parametrize("after", ["soon", "-5", ""])
def test_a_pause_that_makes_no_sense_is_an_ordinary_one(after):
    def told(service, question):
        return (429, {"Retry-After": after}, b"") if len(service.asked) == 1 else {"number": question["number"]}

    with serving(told) as service:
        assert post_json(quick(service), "", {"number": 4}, doubled) == 8
    assert service.paths[0] == "/v1"


def test_one_question_that_is_never_answered_is_a_failure_and_no_number():
    with serving(
        lambda service, question: (500, {}, b"no") if question["number"] == 3 else echo(service, question)
    ) as service:
        found = all_of(quick(service, max_attempts=3), 8)
    assert isinstance(found.pop(3), EndpointError)
    assert found == {i: 2 * i for i in range(8) if i != 3}
    assert len(service.asked) == 7 + 3


def test_a_refused_question_is_not_asked_twice():
    with serving(
        lambda service, question: (400, {}, b"too long") if question["number"] == 3 else echo(service, question)
    ) as service:
        found = all_of(quick(service), 5)
    assert "answers 400 (too long)" in str(found[3])
    assert len(service.asked) == 5


@pytest.mark.parametrize(("status", "said"), [(401, "the key"), (404, "model's name"), (307, "has moved")])
def test_a_service_that_will_never_answer_is_asked_once(status, said):
    with (
        serving(lambda *_: (status, {"Location": "http://127.0.0.1:1/"}, b"")) as service,
        pytest.raises(RunError, match=said),
    ):
        all_of(quick(service, max_concurrency=1), 10)
    assert len(service.asked) == 1


def test_what_was_answered_before_the_service_went_down_is_there():
    kept = {}

    def keep_all(endpoint):
        for which, found in post_all(endpoint, "", {i: {"number": i} for i in range(30)}, doubled):
            kept[which] = found  # noqa: PERF403

    with serving(
        lambda service, question: echo(service, question) if question["number"] < 5 else (503, {}, b"")
    ) as service:
        with pytest.raises(RunError, match="5 of 30 questions were answered"):
            keep_all(quick(service, max_attempts=2, max_concurrency=1))
        assert len(service.asked) == 5 + 2 * MAX_CONSECUTIVE_FAILURES
    assert {which: found for which, found in kept.items() if not isinstance(found, EndpointError)} == {
        i: 2 * i for i in range(5)
    }


def test_nobody_there_is_one_line():
    with serving(echo) as service:
        gone = quick(service, max_attempts=2)
    with pytest.raises(RunError, match="cannot be reached") as told:
        all_of(gone, 3)
    assert "\n" not in str(told.value)


def test_a_service_too_slow_for_the_time_limit_is_given_up():
    def told(service, question):  # noqa: ARG001
        time.sleep(0.5)
        return {"number": 0}

    begun = time.monotonic()
    with serving(told) as service, pytest.raises(RunError, match=r"no answer within 0\.05 s \(tried 2 times\)"):
        all_of(quick(service, timeout_s=0.05, max_attempts=2), 4)
    assert time.monotonic() - begun < 3


def test_the_key_goes_along_and_is_shown_nowhere(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", " secret-1\n")
    with serving(lambda *_: (401, {}, b"wrong key: secret-1")) as service:
        endpoint = Endpoint.from_url(service.url, "JUDGE_KEY")
        with pytest.raises(RunError) as told:
            all_of(endpoint, 1)
    assert service.keys == ["Bearer secret-1"]
    assert "secret-1" not in str(told.value) + repr(endpoint) + endpoint.name


def test_what_stands_after_the_question_mark_is_sent_and_not_shown():
    with serving(echo) as service:
        endpoint = Endpoint(service.url + "?code=hidden")
        assert post_json(endpoint, "chat", {"number": 1}, doubled) == 2
    assert service.paths == ["/v1/chat?code=hidden"]
    assert endpoint.name == service.url


@pytest.mark.parametrize(
    ("url", "variable", "said"),
    [
        ("localhost:8000", None, "no address"),
        ("ftp://a/b", None, "no address"),
        ("http://", None, "no address"),
        ("http://me:pass@host/v1", None, "must hold no password"),
        ("http://host", "NO_SUCH_KEY", "NO_SUCH_KEY"),
    ],
)
def test_a_wrong_address_or_a_missing_key_is_one_line(url, variable, said, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(InputError, match=said) as told:
        Endpoint.from_url(url, variable)
    assert "pass@" not in str(told.value)
