"""Reasoning models as judges, against a real HTTP server that rejects what their services reject."""

from __future__ import annotations

import json

import pytest
from support.endpoint import serving

from instructgpt.evaluate.cache import ResultCache
from instructgpt.evaluate.judges.http_client import Endpoint
from instructgpt.evaluate.judges.llm_judge import (
    EndpointJudge,
    JudgePrompt,
    JudgeUnavailableError,
    collect_verdicts,
    parse_verdict,
)

PROMPTS = [JudgePrompt(f"prompt {number}", "short", "rather long") for number in range(12)]
REJECTIONS = {
    "named fallback": (
        400,
        {
            "error": {
                "message": "Unsupported parameter: 'max_tokens' is not supported with this model. "
                "Use 'max_completion_tokens' instead.",
                "param": "max_tokens",
                "code": "unsupported_parameter",
            }
        },
    ),
    "extra field": (422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "max_tokens"]}]}),
}


def error(status, body):
    return status, {"Content-Type": "application/json"}, json.dumps(body).encode()


def answer(content, finish="stop", **message):
    message = {"role": "assistant", "content": content} | message
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish}]}


def judge_at(service, **options):
    endpoint = Endpoint(service.url, backoff_s=0.01)
    return EndpointJudge("reasoner", endpoint, options.pop("verdict_source", "text"), **options)


@pytest.mark.parametrize("rejection", REJECTIONS.values(), ids=REJECTIONS)
def test_budget_is_sent_under_the_name_that_the_service_accepts(rejection):
    def respond(service, payload):  # noqa: ARG001
        if "temperature" in payload:
            return error(400, {"error": {"message": "Unsupported value: 'temperature'"}})
        if "max_tokens" in payload:
            return error(*rejection)
        return answer("Both are fine.\nVerdict: A") if payload["max_completion_tokens"] == 5000 else answer(None)

    with serving(respond) as service:
        judge = judge_at(service, max_tokens=5000)
        assert {verdict.better for verdict in judge.judge(PROMPTS)} == {"first"}
        rejected = sum("max_tokens" in payload for payload in service.payloads)
        assert 1 <= rejected <= judge.endpoint.max_concurrency
        assert len(service.payloads) == len(PROMPTS) + rejected
        assert {verdict.better for verdict in judge.judge(PROMPTS)} == {"first"}
        assert len(service.payloads) == 2 * len(PROMPTS) + rejected  # the judge remembers


def test_rejected_value_is_no_rejected_field():
    """A budget that is too large stays an error: under another name the same value would fail again."""
    body = {"error": {"message": "max_tokens is too large: 9000. This model supports at most 4096."}}
    with serving(lambda *_: error(400, body)) as service:
        with pytest.raises(JudgeUnavailableError, match="too large"):
            judge_at(service, max_tokens=9000).judge(PROMPTS)
        assert all("max_tokens" in payload for payload in service.payloads)


@pytest.mark.parametrize("source", ["text", "logp"])
@pytest.mark.parametrize("temperature", [None, 0.0, 0.3])
def test_temperature_is_sent_only_if_set(source, temperature):
    top = [{"token": "B", "logprob": -0.1}]
    reply = answer("Verdict: B")
    reply["choices"][0]["logprobs"] = {"content": [{"token": "B", "top_logprobs": top}]}
    with serving(lambda *_: reply) as service:
        judge = judge_at(service, verdict_source=source, temperature=temperature)
        assert [verdict.better for verdict in judge.judge(PROMPTS[:1])] == ["second"]
        (payload,) = service.payloads
    expected = {} if temperature is None else {"temperature": temperature}
    assert {name: value for name, value in payload.items() if name == "temperature"} == expected
    assert payload["max_tokens"] == (400 if source == "text" else 1)


@pytest.mark.parametrize(
    ("reply", "said", "truncated"),
    [
        (answer(None, "length", reasoning_content="Hm."), "", True),
        (answer("", "length"), "", True),
        (answer(None, refusal="I do not compare."), "I do not compare.", False),
        ({"choices": [{"message": {"role": "assistant"}, "finish_reason": "stop"}]}, "", False),
        (answer("<think>Verdict: A", "length"), "<think>Verdict: A", True),
    ],
)
def test_answer_without_text_has_no_verdict_and_is_not_repeated(reply, said, truncated):
    with serving(lambda *_: reply) as service:
        (verdict,) = judge_at(service).judge(PROMPTS[:1])
        assert len(service.payloads) == 1
    assert (verdict.better, verdict.said, verdict.truncated) == (None, said, truncated)


def test_content_in_parts_is_joined():
    parts = [{"type": "reasoning", "text": "Verdict: A"}, {"type": "text", "text": "Verdict:"}]
    with serving(lambda *_: answer([*parts, {"type": "text", "text": " B"}])) as service:
        (verdict,) = judge_at(service).judge(PROMPTS[:1])
    assert verdict.better == "second"


@pytest.mark.parametrize("reply", [{"choices": [{"message": None}]}, {"choices": ["x"]}, answer(5), {"choices": []}])
def test_malformed_answers_are_repeated(reply):
    with serving(lambda *_: reply) as service:
        with pytest.raises(JudgeUnavailableError, match="malformed answer"):
            judge_at(service).judge(PROMPTS[:1])
        assert len(service.payloads) == 5


def test_endpoint_without_log_probabilities_is_named_at_once():
    with serving(lambda *_: answer("A")) as service:
        with pytest.raises(JudgeUnavailableError, match="--judge-reads text"):
            judge_at(service, verdict_source="logp").judge(PROMPTS)
        assert len(service.payloads) <= 4


def test_truncated_answers_are_reported_and_judged_again_with_a_larger_budget(tmp_path, capsys):
    def respond(service, payload):  # noqa: ARG001
        return answer("Verdict: tie") if payload["max_tokens"] > 1000 else answer(None, "length")

    with serving(respond) as service:
        for budget, better in ((400, {None}), (4000, {"tie"})):
            verdicts, stop = collect_verdicts(judge_at(service, max_tokens=budget), PROMPTS, ResultCache(tmp_path))
            assert ({verdict.better for verdict in verdicts}, stop) == (better, None)
            said = " ".join(capsys.readouterr().out.split())
            assert ("12 of 12 answers reached the token limit" in said) == (budget == 400)
            assert ("--judge-max-tokens" in said) == (budget == 400)
        assert len(service.payloads) == 2 * len(PROMPTS)


@pytest.mark.parametrize(
    ("text", "better"),
    [
        ("<think>B seems better.\nVerdict: B\nNo.</think>\nVerdict: A", "first"),
        ("B seems better.\nVerdict: B\n</think>\n\nVerdict: A", "first"),  # the template opens the reasoning
        ("<think>\n\n</think>\n\nVerdict: tie", "tie"),
        ("<think>Verdict: A", None),
        ("Verdict: A\n<think>", "first"),
    ],
)
def test_reasoning_is_no_verdict(text, better):
    assert parse_verdict(text).better == better
