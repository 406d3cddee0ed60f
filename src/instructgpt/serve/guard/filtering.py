"""Answers that pass the guards: whole ones and streams, of our models and of the server behind this one.

A blocked completion has no text: `finish_reason` is `content_filter`, and the message's `refusal` says why. A stream is
held back until it was checked, a part at a time; what was sent before a later part is blocked stays sent.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from instructgpt.serve.errors import APIError, invalid_field
from instructgpt.serve.generation import KEEP_ALIVE_S, LAST_EVENT, format_event
from instructgpt.serve.guard.checking import GuardSet
from instructgpt.serve.request_fields import parse_messages

CONTENT_FILTER = "content_filter"
_UNREAD_NAMES = frozenset(
    (
        *("role", "type", "id", "tool_call_id", "model", "user", "service_tier", "format", "detail", "metadata"),
        *("safety_identifier", "prompt_cache_key", "prompt_cache_retention", "request_id", "session_id"),
    )
)
"""Fields with names rather than text."""
_UNREADABLE_NAMES = frozenset(
    ("image_url", "input_audio", "audio", "file", "video_url", "input_image", "prompt_embeds")
)


def collect_texts(value: Any, *, allows_unreadable: bool = False) -> Iterator[str]:
    """Yield all texts of a request's or an answer's fields, whatever their nesting.

    Raises:
        APIError: there are images, sounds or files, which guards cannot read, unless they are allowed.
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if name in _UNREADABLE_NAMES and item and not allows_unreadable:
                raise invalid_field(str(name), "the guards of this server read text only", "unreadable_content")
            if name not in _UNREAD_NAMES:
                yield from collect_texts(item, allows_unreadable=allows_unreadable)
    elif isinstance(value, list):
        for item in value:
            yield from collect_texts(item, allows_unreadable=allows_unreadable)


def completion_text(choice: Mapping[str, Any]) -> str:
    """Return all that a choice, or its part in a chunk, says: text, reasoning, arguments of tools."""
    turn = choice.get("message") or choice.get("delta")
    if isinstance(turn, Mapping):
        fields = {name: item for name, item in turn.items() if name != "audio"}
        return "".join(collect_texts(fields, allows_unreadable=True))
    return str(choice.get("text") or "")


@dataclass(slots=True)
class GuardedRequest:
    """A request with what its answers need.

    Attributes:
        has_blocked: whether its prompt or a completion was blocked.
        is_left_out: whether the request log has counted that.
    """

    guards: GuardSet
    body: Mapping[str, Any]
    use_case: str
    is_chat: bool
    has_blocked: bool = False
    is_left_out: bool = False

    async def is_prompt_blocked(self) -> bool:
        """Check all texts of the request.

        Raises:
            APIError: a scorer fails, or there is something that no scorer reads.
        """
        if not self.guards.reads("prompt"):
            return False
        prompt = self.body.get("prompt")
        if isinstance(prompt, list) and not all(isinstance(item, str) for item in prompt):
            raise invalid_field("prompt", "the guards of this server read texts, not token ids", "unreadable_content")
        self.has_blocked = await self.guards.is_prompt_blocked(list(collect_texts(self.body)), self.use_case)
        return self.has_blocked

    @property
    def num_choices(self) -> int:
        prompt = self.body.get("prompt")
        prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
        n = self.body.get("n")
        return prompts * (n if isinstance(n, int) and n > 0 else 1)

    @property
    def includes_usage(self) -> bool:
        options = self.body.get("stream_options")
        return isinstance(options, Mapping) and bool(options.get("include_usage"))

    def prompt_of(self, index: int) -> dict[str, Any]:
        """Return the prompt of a completion as a record's fields."""
        if self.is_chat:
            rows = [row for row in self.body.get("messages") or () if isinstance(row, dict)]
            try:
                return {"messages": [turn.model_dump() for turn in parse_messages(rows)]}
            except APIError:  # turns of tools and the like, which another server reads
                return {"prompt": "\n\n".join(collect_texts(rows, allows_unreadable=True)) or " "}
        prompt = self.body.get("prompt")
        texts = prompt if isinstance(prompt, list) else [prompt]
        text = texts[index * len(texts) // max(1, self.num_choices)] if texts else ""
        return {"prompt": text if isinstance(text, str) and text else " "}

    async def is_blocked(self, index: int, text: str) -> bool:
        """Check a completion, or its beginning."""
        blocked = await self.guards.is_completion_blocked(text, self.prompt_of(index), self.use_case)
        self.has_blocked = self.has_blocked or blocked
        return blocked

    # ------------------------------------------------------------ a prompt that is blocked

    def refused_answer(self, model: str) -> dict[str, Any]:
        """Return the whole answer to a prompt that does not reach the model."""
        choices = [self._blocked_choice({"index": index}) for index in range(self.num_choices)]
        return self._head(model, "chat.completion") | {"choices": choices, "usage": _NO_USAGE}

    async def refused_stream(self, model: str) -> AsyncIterator[bytes]:
        """Yield the stream for a prompt that does not reach the model."""
        head = self._head(model, "chat.completion.chunk")
        for index in range(self.num_choices):
            if self.is_chat:
                delta = {"role": "assistant", "content": ""}
                role = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
                yield format_event(head | {"choices": [role]}).encode()
            yield format_event(head | {"choices": [self.blocked_delta(index)]}).encode()
        if self.includes_usage:
            yield format_event(head | {"choices": [], "usage": _NO_USAGE}).encode()
        yield LAST_EVENT.encode()

    def _head(self, model: str, chat_object: str) -> dict[str, Any]:
        kind, prefix = (chat_object, "chatcmpl-") if self.is_chat else ("text_completion", "cmpl-")
        return {"id": prefix + uuid.uuid4().hex, "object": kind, "created": int(time.time()), "model": model}

    # ------------------------------------------------------------ completions

    async def filter_answer(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return a whole answer with the text of blocked completions left out."""
        choices = []
        for choice in answer.get("choices") or ():
            blocked = await self.is_blocked(_choice_index(choice), completion_text(choice))
            choices.append(self._blocked_choice(choice) if blocked else choice)
        return answer | {"choices": choices}

    def _blocked_choice(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        head = {"index": _choice_index(choice), "logprobs": None, "finish_reason": CONTENT_FILTER, "stop_reason": None}
        if self.is_chat:
            return head | {"message": {"role": "assistant", "content": None, "refusal": self.guards.settings.message}}
        return head | {"text": ""}

    def blocked_delta(self, index: int) -> dict[str, Any]:
        head = {"index": index, "logprobs": None, "finish_reason": CONTENT_FILTER, "stop_reason": None}
        return head | ({"delta": {"refusal": self.guards.settings.message}} if self.is_chat else {"text": ""})

    async def filter_stream(self, parts: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
        """Yield a stream of server-sent events, each after it was checked."""
        async with contextlib.aclosing(parts):
            try:
                async for event in _checked_events(_StreamFilter(self), parts):
                    yield event
            except APIError as error:
                yield format_event(error.body).encode() + LAST_EVENT.encode()


_NO_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


@dataclass(slots=True)
class _HeldChoice:
    """A completion of a stream: its text so far, and its chunks that were not checked yet."""

    text: str = ""
    num_unchecked: int = 0
    chunks: list[dict[str, Any]] = field(default_factory=list)
    is_ended: bool = False


class _StreamFilter:
    """Splits a stream into chunks, and releases them when the guards allow it."""

    def __init__(self, request: GuardedRequest) -> None:
        self.request = request
        self.is_over = False
        self._buffer = b""
        self._choices: dict[int, _HeldChoice] = {}
        self._has_ended = False

    async def push(self, part: bytes) -> list[bytes]:
        """Take a part of a stream, cut anywhere; return the events that may be sent now."""
        *lines, self._buffer = (self._buffer + part).split(b"\n")
        events: list[bytes] = []
        for line in lines:
            events += await self._take_line(line.strip(b"\r"))
        return events

    async def finish(self) -> list[bytes]:
        """Return the events that a stream ends with, if it has not ended itself."""
        return [] if self._has_ended else await self._end()

    async def _take_line(self, line: bytes) -> list[bytes]:
        if line.startswith(b":"):
            return [line + b"\n\n"]
        if not line.startswith(b"data:"):
            return []  # the empty line after an event, and fields that clients of this protocol do not read
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return await self._end()
        try:
            chunk = json.loads(data)
        except ValueError:
            return []  # half an event of a server that broke off
        if not isinstance(chunk, dict) or not chunk.get("choices"):
            return [_encode_event(chunk)]  # usage, an error
        events: list[bytes] = []
        for choice in chunk["choices"]:
            events += await self._take_choice(chunk | {"choices": [choice]}, choice)
        if self.request.has_blocked and self._all_ended and not self.request.includes_usage:
            events += await self._end()  # nothing more will be read: the model need not go on
        return events

    @property
    def _all_ended(self) -> bool:
        return sum(pending.is_ended for pending in self._choices.values()) >= self.request.num_choices

    async def _take_choice(self, chunk: dict[str, Any], choice: dict[str, Any]) -> list[bytes]:
        pending = self._choices.setdefault(_choice_index(choice), _HeldChoice())
        if pending.is_ended:
            return []
        text = completion_text(choice)
        pending.text += text
        pending.num_unchecked += len(text)
        pending.chunks.append(chunk)
        pending.is_ended = choice.get("finish_reason") is not None
        check_every = self.request.guards.settings.check_every
        if pending.is_ended or not pending.text or (check_every and pending.num_unchecked >= check_every):
            return await self._release(pending, chunk)
        return []

    async def _release(self, pending: _HeldChoice, last: dict[str, Any]) -> list[bytes]:
        """Check what a completion says so far, and return its chunks, or the one that ends it."""
        index = _choice_index(last["choices"][0])
        chunks, pending.chunks = pending.chunks, []
        if pending.num_unchecked and await self.request.is_blocked(index, pending.text):
            pending.is_ended = True
            chunks = [last | {"choices": [self.request.blocked_delta(index)]}]
        pending.num_unchecked = 0
        return [_encode_event(chunk) for chunk in chunks]

    async def _end(self) -> list[bytes]:
        """Return what is still held back, and the last event."""
        if self._has_ended:
            return []
        self._has_ended = self.is_over = True
        events: list[bytes] = []
        for pending in self._choices.values():
            if pending.chunks:
                events += await self._release(pending, pending.chunks[-1])
        return [*events, LAST_EVENT.encode()]


async def _checked_events(stream: _StreamFilter, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the events that each part of a stream allows to send, and a comment where nothing was sent for long."""
    sent_time = time.monotonic()
    async for part in parts:
        events = await stream.push(part)
        if not events and time.monotonic() - sent_time > KEEP_ALIVE_S:
            events = [b": keep-alive\n\n"]
        if events:
            sent_time = time.monotonic()
        for event in events:
            yield event
        if stream.is_over:
            break
    for event in await stream.finish():
        yield event


def _choice_index(choice: Mapping[str, Any]) -> int:
    index = choice.get("index", 0)
    return index if isinstance(index, int) else 0


def _encode_event(chunk: Any) -> bytes:
    return format_event(chunk).encode()
