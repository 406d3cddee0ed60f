"""What a client may send and what it gets back, over HTTP, from a tiny random model."""

import pytest
from conftest import CONTEXT
from support.serving import run_endpoint


@pytest.fixture(scope="module")
def endpoint(save):
    with run_endpoint({"policy": save("llama"), "sft": save("gpt2", "chat")}) as running:
        yield running


def test_null_is_an_absent_field(endpoint):
    fields = [
        "max_tokens",
        "temperature",
        "top_p",
        "n",
        "stop",
        "seed",
        "logprobs",
        "top_logprobs",
        "tools",
        "tool_choice",
        "logit_bias",
        "user",
        "store",
    ]
    nulls = dict.fromkeys([*fields, "stream_options", "response_format", "max_completion_tokens", "function_call"])
    answer = endpoint.chat("hello", **nulls, model="policy")
    assert answer["object"] == "chat.completion"
    assert len(answer["choices"]) == 1
    assert answer["usage"]["total_tokens"] <= CONTEXT + 1


def test_stream(endpoint):
    events = endpoint.events("/v1/chat/completions", messages=[{"role": "user", "content": "hi"}], max_tokens=8, seed=3)
    assert events[-1] == "[DONE]"
    whole = endpoint.chat("hi", max_tokens=8, seed=3)["choices"][0]
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in events[:-1]) == whole["message"]["content"]
