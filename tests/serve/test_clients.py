"""The real packages openai and langchain-openai as clients of the endpoint."""

import langchain_openai
import openai
import pytest
from support.serving import run_endpoint_as

KEY = "sk-none"


@pytest.fixture(scope="module", params=["own models", "upstream"])
def endpoint(request, save):
    """Our own models, and a second endpoint in front of the first."""
    with run_endpoint_as(request.param, {"policy": save("llama"), "sft": save("gpt2", "chat")}) as (front, _):
        yield front


@pytest.fixture(scope="module")
def client(endpoint):
    with openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key=KEY, max_retries=0) as opened:
        yield opened


USER = [{"role": "user", "content": "Where is Seoul?"}]


def test_openai_chat(client):
    answer = client.chat.completions.create(
        model="policy", messages=USER, n=2, max_completion_tokens=6, seed=7, logprobs=True, top_logprobs=2, stop=["zz"]
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    for choice in answer.choices:
        assert choice.finish_reason in ("stop", "length")
        assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)
        assert all(token.logprob <= token.top_logprobs[0].logprob for token in choice.logprobs.content)


def test_openai_stream(client):
    whole = client.chat.completions.create(model="policy", messages=USER, max_tokens=9, seed=7)
    chunks = list(
        client.chat.completions.create(
            model="policy", messages=USER, max_tokens=9, seed=7, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    with client.chat.completions.stream(model="policy", messages=USER, max_tokens=9, seed=7) as stream:
        for _ in stream:
            pass
        assert stream.current_completion_snapshot.choices[0].message.content == text


def test_openai_text_and_models(client):
    answer = client.completions.create(model="sft", prompt=["The sea", "A frog"], max_tokens=3, logprobs=2, echo=True)
    assert [choice.text.startswith(start) for choice, start in zip(answer.choices, ("The sea", "A frog"), strict=True)]
    logprobs = answer.choices[0].logprobs
    assert logprobs.token_logprobs[0] is None
    assert len(logprobs.tokens) == len(logprobs.text_offset) == len(logprobs.top_logprobs)
    assert [model.id for model in client.models.list()] == ["policy", "sft"]
    assert client.models.retrieve("sft").id == "sft"


def test_openai_errors(client):
    with pytest.raises(openai.NotFoundError, match="policy, sft") as caught:
        client.chat.completions.create(model="gpt-9", messages=USER)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="frequency_penalty"):
        client.chat.completions.create(model="policy", messages=USER, frequency_penalty=1.5)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "sea " * 100}])
    assert caught.value.code == "context_length_exceeded"


def test_langchain(endpoint):
    options = {"base_url": f"{endpoint.url}/v1", "api_key": KEY, "seed": 3, "max_retries": 0}
    chat = langchain_openai.ChatOpenAI(model="policy", max_tokens=8, stream_usage=True, **options)
    answer = chat.invoke([("system", "Be short."), ("human", "Where is Seoul?")])
    assert answer.response_metadata["finish_reason"] in ("stop", "length")
    assert answer.usage_metadata["output_tokens"] <= 8
    chunks = list(chat.stream([("system", "Be short."), ("human", "Where is Seoul?")]))
    assert "".join(chunk.content for chunk in chunks) == answer.content
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) <= 8
    with pytest.raises(openai.BadRequestError, match="response_format"):
        chat.with_structured_output({"title": "a", "type": "object", "properties": {}}).invoke("x")
