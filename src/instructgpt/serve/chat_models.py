"""What answers in a chat, and the models of an endpoint. Nothing here imports PyTorch."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import httpx

from instructgpt.errors import InputError, RunError, one_line
from instructgpt.records import Message


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """How answers are sampled. `seed` None: other answers each time."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    seed: int | None = None

    def change(self, name: str, value: str) -> ChatSettings:
        """Return settings with one other value. Raises InputError where there is no such setting or value."""
        limits = {"temperature": (0, 100), "top_p": (1e-9, 1), "max_tokens": (1, 10**9), "seed": (0, 2**63)}
        if name not in limits:
            raise InputError(f"no setting '{name}'; settings: {', '.join(limits)}")
        try:
            number = float(value) if name in ("temperature", "top_p") else int(value)
        except ValueError as error:
            raise InputError(f"{name} {value}: expected a number") from error
        low, high = limits[name]
        if not low <= number <= high:
            raise InputError(f"{name} {value}: expected {low:g} to {high:g}")
        changes: dict[str, Any] = {name: number}
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class ChatReply:
    """One model's answer."""

    model: str
    text: str
    finish: Literal["stop", "length"] = "stop"


class ChatModel(Protocol):
    """Answers one conversation at a time."""

    name: str

    def answer(
        self,
        messages: Sequence[Message],
        settings: ChatSettings,
        show: Callable[[str], None],
        interrupt: threading.Event,
    ) -> ChatReply:
        """Return the answer; `show` gets its text as it grows. Where `interrupt` is set it ends early.

        Raises:
            RunError: there is no answer; the message says why.
        """
        ...

    def close(self) -> None:
        """Free what the model holds."""
        ...


class AnswerScorer(Protocol):
    """Scores answers."""

    def score(self, messages: Sequence[Message], answer: ChatReply) -> float:
        """Return the score of an answer to a conversation."""
        ...


class EndpointChatModel:
    """A model of an OpenAI-compatible endpoint."""

    def __init__(self, client: httpx.Client, name: str) -> None:
        self.client, self.name = client, name

    def close(self) -> None:
        """End the connections."""
        self.client.close()

    def answer(
        self,
        messages: Sequence[Message],
        settings: ChatSettings,
        show: Callable[[str], None],
        interrupt: threading.Event,
    ) -> ChatReply:
        """Read a stream of the endpoint."""
        fields: dict[str, Any] = {
            "model": self.name,
            "messages": [message.model_dump() for message in messages],
            "stream": True,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_tokens": settings.max_tokens,
        }
        fields |= {} if settings.seed is None else {"seed": settings.seed}
        text, finish = "", None
        try:
            with self.client.stream("POST", "/chat/completions", json=fields) as reply:
                for choice in _iter_choices(reply, interrupt):
                    text += choice["delta"].get("content") or choice["delta"].get("refusal") or ""
                    finish = choice["finish_reason"] or finish
                    show(text)
        except (httpx.HTTPError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"the endpoint does not answer as expected ({one_line(error, 150)})") from error
        return ChatReply(self.name, text, "stop" if finish == "stop" else "length")


def _iter_choices(reply: httpx.Response, interrupt: threading.Event) -> Iterator[dict[str, Any]]:
    """Yield the parts of a stream. Raises RunError for an error of the endpoint."""
    if reply.status_code != 200:
        raise RunError(_error_message(reply.read()))
    for line in reply.iter_lines():
        if interrupt.is_set():
            return
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            continue
        chunk = json.loads(data)
        if "error" in chunk:
            raise RunError(_error_message(data.encode()))
        yield from chunk["choices"]


def connect(url: str, names: Sequence[str], key: str | None) -> list[EndpointChatModel]:
    """Return the named models of an endpoint, or its first.

    Raises:
        InputError: the endpoint does not answer, or has no such model.
    """
    base_url = url.rstrip("/")
    base_url = base_url if base_url.endswith("/v1") else f"{base_url}/v1"
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        client = httpx.Client(base_url=base_url, headers=headers, timeout=httpx.Timeout(600, connect=10))
    except httpx.InvalidURL as error:
        raise InputError(f"--url {url}: not an address ({one_line(error, 150)})") from error
    try:
        present = _list_names(client, url)
        missing = [name for name in names if name not in present]
        if missing or not present:
            present_names = ", ".join(present) or "none"
            raise InputError(f"--model {' '.join(missing)}: the endpoint has the models {present_names}")
    except InputError:
        client.close()
        raise
    return [EndpointChatModel(client, name) for name in names or present[:1]]


def _list_names(client: httpx.Client, url: str) -> list[str]:
    try:
        reply = client.get("/models")
        if reply.status_code != 200:
            raise InputError(f"--url {url}: {_error_message(reply.content)}")
        return [str(model["id"]) for model in reply.json()["data"]]
    except (httpx.HTTPError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"--url {url}: no OpenAI-compatible endpoint answers there ({one_line(error, 150)})"
        ) from error


def _error_message(content: bytes) -> str:
    try:
        error = json.loads(content)["error"]
        return one_line(error["message"] if isinstance(error, dict) else error, 300)
    except (KeyError, TypeError, ValueError):
        return one_line(content.decode(errors="replace"), 300) or "an empty answer"
