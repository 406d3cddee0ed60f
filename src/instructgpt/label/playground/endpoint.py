"""The client of an OpenAI-compatible endpoint: the list of its models, and chat completions as a stream."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from instructgpt.errors import RunError

_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 5.0, 300.0
_MODELS_AGE_S = 30.0
_MAX_ERROR_LENGTH = 300
CONTENT_FILTERED = "content_filter"
"""`finish` of an answer that a content filter stopped: its text is the filter's."""


class ModelEndpointError(RunError):
    """The endpoint is unreachable, refused the request, or sent no completion.

    Only `summary` may be stored or logged: the endpoint's own words can repeat a prompt.
    """

    def __init__(self, summary: str, detail: str = "") -> None:
        super().__init__(f"{summary}: {detail}" if detail else summary)
        self.summary = summary


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a completion; `finish` in the last one."""

    text: str = ""
    finish: str | None = None
    checkpoint: str | None = None  # `system_fingerprint`, where the endpoint sends one


@dataclass
class ModelEndpoint:
    """An endpoint at `http://HOST[:PORT][/PATH]`, with or without the final `/v1`."""

    url: str
    key: str | None = field(default=None, repr=False)
    _models: tuple[str, ...] = ()
    _models_until: float = 0.0

    @property
    def base_url(self) -> str:
        url = self.url.rstrip("/")
        return url if urlsplit(url).path.endswith("/v1") else f"{url}/v1"

    def client(self) -> httpx.AsyncClient:
        """Return a client, to be used with `async with`; the environment's proxies are not used."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        timeout = httpx.Timeout(_READ_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S)
        return httpx.AsyncClient(headers=headers, timeout=timeout, trust_env=False)

    async def list_models(self) -> tuple[str, ...]:
        """Return the names of the endpoint's models, at most half a minute old; raise ModelEndpointError."""
        if time.monotonic() >= self._models_until:
            async with self.client() as client:
                try:
                    answer = await client.get(f"{self.base_url}/models", timeout=_CONNECT_TIMEOUT_S)
                except httpx.HTTPError as error:
                    raise ModelEndpointError(f"the endpoint cannot be reached ({type(error).__name__})") from error
            if answer.status_code != httpx.codes.OK:
                raise _status_error(answer.status_code, answer.content)
            self._models = _parse_models(answer.content)
            self._models_until = time.monotonic() + _MODELS_AGE_S
        return self._models

    async def stream_chat(
        self, client: httpx.AsyncClient, model: str, messages: Sequence[Mapping[str, str]], sampling: Mapping[str, Any]
    ) -> AsyncIterator[Delta]:
        """Yield the pieces of one chat completion; raise ModelEndpointError."""
        payload = {"model": model, "messages": list(messages), "stream": True, "store": False, **sampling}
        is_finished = False
        try:
            async with client.stream("POST", f"{self.base_url}/chat/completions", json=payload) as answer:
                if answer.status_code != httpx.codes.OK:
                    raise _status_error(answer.status_code, await answer.aread())
                async for delta in _iter_deltas(answer):
                    is_finished = is_finished or delta.finish is not None
                    yield delta
        except httpx.HTTPError as error:
            raise ModelEndpointError(f"the endpoint broke off ({type(error).__name__})") from error
        if not is_finished:
            raise ModelEndpointError("the endpoint's stream ended without a finish_reason")

    async def complete_chat(
        self, client: httpx.AsyncClient, model: str, messages: Sequence[Mapping[str, str]], sampling: Mapping[str, Any]
    ) -> Delta:
        """Return a whole chat completion; raise ModelEndpointError."""
        text, last = "", Delta()
        async for delta in self.stream_chat(client, model, messages, sampling):
            text += delta.text
            last = delta if delta.finish else last
        return Delta(text, last.finish, last.checkpoint)


async def _iter_deltas(answer: httpx.Response) -> AsyncIterator[Delta]:
    async for line in answer.aiter_lines():
        delta = parse_stream_line(line)
        if delta is not None:
            yield delta


def list_models_now(endpoint: ModelEndpoint) -> tuple[str, ...]:
    """Return the endpoint's models, outside of an event loop; raise ModelEndpointError."""
    return asyncio.run(endpoint.list_models())


def parse_stream_line(line: str) -> Delta | None:
    """Return what a line of server-sent events adds to the completion; None for comments, usage and the end.

    Raises:
        ModelEndpointError: the line is an error or not a chunk.
    """
    if not line.startswith("data:"):
        return None
    data = line[5:].strip()
    if data.startswith("[DONE]") or not data:
        return None
    try:
        chunk = json.loads(data)
        if chunk.get("error"):
            raise ModelEndpointError("the endpoint reports an error", _error_message(chunk["error"]))
        if not chunk.get("choices"):
            return None  # usage
        choice = chunk["choices"][0]
        delta = choice.get("delta") or {}
        text = delta.get("content") or delta.get("refusal") or ""  # a content filter's sentence
        return Delta(str(text), choice.get("finish_reason"), chunk.get("system_fingerprint"))
    except (ValueError, AttributeError, KeyError, IndexError, TypeError) as error:
        raise ModelEndpointError("the endpoint sent a line that is no chunk of a completion") from error


def _parse_models(content: bytes) -> tuple[str, ...]:
    try:
        names = tuple(str(model["id"]) for model in json.loads(content)["data"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelEndpointError("the endpoint's /models is no list of models") from error
    if not names:
        raise ModelEndpointError("the endpoint has no models")
    return names


def _status_error(status: int, content: bytes) -> ModelEndpointError:
    try:
        message = _error_message(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError):
        message = ""
    return ModelEndpointError(f"the endpoint answered {status}", message)


def _error_message(error: Any) -> str:
    message = error.get("message", "") if isinstance(error, dict) else error
    return " ".join(str(message).split())[:_MAX_ERROR_LENGTH]
