"""Which requests are handed to the request log, in the form that it keeps."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request

from instructgpt.serve.errors import APIError
from instructgpt.serve.generation import Generation
from instructgpt.serve.keys import APIKey
from instructgpt.serve.request_fields import ChatFields, TextFields, parse_messages
from instructgpt.serve.request_log import RequestLog, StoredRequest
from instructgpt.serve.upstream import CollectedAnswer

_log = logging.getLogger("instructgpt.serve")
_SAMPLING_FIELDS = ("temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "n")


class Storage:
    """Keeps the requests of one server that say `store: true`."""

    def __init__(self, request_log: RequestLog | None) -> None:
        self.request_log = request_log

    async def keep(self, request: Request, requests: Sequence[StoredRequest]) -> None:
        """Keep or count requests. A disk that is full does not fail the answer; it is logged."""
        if self.request_log is None:
            return
        key: APIKey | None = request.state.key
        retries = _retry_count(request)
        for stored in requests:
            try:
                await asyncio.to_thread(self.request_log.add, stored, key, retries=retries)
            except OSError:
                _log.exception("a request could not be stored")

    async def leave_out_filtered(self) -> None:
        """Count a request that a guard blocked; of it nothing is kept."""
        if self.request_log is not None:
            try:
                await asyncio.to_thread(self.request_log.leave_out, "content filter")
            except OSError:
                _log.exception("a request could not be counted")


def _retry_count(request: Request) -> int:
    """Return how often the client sent the request before; OpenAI's clients say so."""
    value = request.headers.get("x-stainless-retry-count", "0")
    return int(value) if value.isascii() and value.isdigit() else 0


def generated_requests(generation: Generation) -> list[StoredRequest]:
    """Return a finished generation as it is kept, a record a prompt."""
    fields, answer, model = generation.fields, generation.answer, generation.model
    if not answer.is_finished or not fields.store:
        return []
    sampling = fields.model_dump(include=set(_SAMPLING_FIELDS), exclude_none=True)
    stored = []
    for index, request in enumerate(generation.requests):
        choices = answer.choices[index * fields.n : (index + 1) * fields.n]
        completions = [{"completion": choice.text, "finish": choice.finish_reason} for choice in choices]
        if isinstance(fields, ChatFields):
            prompt: dict[str, Any] = {"messages": [turn.model_dump() for turn in parse_messages(fields.messages)]}
        else:
            prompt = {"prompt": model.tokenizer.decode(request.prompt)}
        suffix = f"-{index}" if len(generation.requests) > 1 else ""
        stored.append(
            StoredRequest(
                answer.id + suffix, prompt, completions, model.name, model.weights_hash, sampling, request.seed
            )
        )
    return stored


def passed_requests(body: Mapping[str, Any], answer: CollectedAnswer) -> list[StoredRequest]:
    """Return a request that passed to the server behind this one; none where it is more than text."""
    if body.get("store") is not True or not answer.is_complete:
        return []
    sampling = {name: body[name] for name in _SAMPLING_FIELDS if body.get(name) is not None}
    n = body.get("n") or 1
    completions = [answer.completions[index] for index in sorted(answer.completions)]
    try:
        if "messages" in body:
            turns = parse_messages(ChatFields.model_validate({"messages": body["messages"]}).messages)
            prompts: list[dict[str, Any]] = [{"messages": [turn.model_dump() for turn in turns]}]
        else:
            texts = TextFields.model_validate({"prompt": body["prompt"]}).prompt
            prompts = [{"prompt": text} for text in ([texts] if isinstance(texts, str) else texts)]
    except (APIError, KeyError, ValueError):
        return []
    if not all(isinstance(prompt.get("prompt", ""), str) for prompt in prompts):
        return []  # token ids of a tokenizer that is not here
    seed = body.get("seed") if isinstance(body.get("seed"), int) else None
    return [
        StoredRequest(
            answer.id + (f"-{index}" if len(prompts) > 1 else ""),
            prompt,
            completions[index * n : (index + 1) * n],
            answer.model,
            answer.fingerprint,
            sampling,
            seed,
        )
        for index, prompt in enumerate(prompts)
    ]
