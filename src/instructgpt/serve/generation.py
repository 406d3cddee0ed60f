"""One request to a model from its fields to its answer: whole, or as server-sent events."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from instructgpt.io import format_json_line
from instructgpt.sampling.decoder import SamplingParams
from instructgpt.serve.answers import GenerationAnswer, make_answer
from instructgpt.serve.engine import (
    CompletionDelta,
    GenerationError,
    GenerationEvent,
    GenerationRequest,
    PromptLogps,
    QueueFullError,
)
from instructgpt.serve.errors import APIError, invalid_field
from instructgpt.serve.request_fields import ChatFields, GenerationFields, TextFields, parse_messages
from instructgpt.serve.served_model import ServedModel

KEEP_ALIVE_S = 15.0
"""Seconds without a token after which a stream sends a comment, so that no proxy closes it."""
MAX_PROMPTS_A_REQUEST = 1_024
LAST_EVENT = "data: [DONE]\n\n"
"""Ends each stream, also one with an error."""
_RETRY_AFTER = {"Retry-After": "1"}
_ERROR_STATUS = {"timeout": 504, "internal_error": 500, "shutdown": 503}


@dataclass(frozen=True, slots=True)
class GenerationLimits:
    """What a request may use."""

    timeout_s: float = 600.0


class Generation:
    """A request that runs on an engine."""

    def __init__(self, model: ServedModel, fields: GenerationFields, limits: GenerationLimits) -> None:
        """Encode the prompts and check the limits.

        Raises:
            APIError: the prompts do not fit, or are none.
        """
        self.model, self.fields = model, fields
        echoed_texts: list[str] = []
        if isinstance(fields, ChatFields):
            prompts = [model.encode_chat(parse_messages(fields.messages))]
        else:
            assert isinstance(fields, TextFields)
            prompts = model.encode_texts(fields.prompt)
            if fields.echo:
                echoed_texts = [_decode_prompt(model, ids) for ids in prompts]
        if len(prompts) > MAX_PROMPTS_A_REQUEST:
            raise invalid_field("prompt", f"at most {MAX_PROMPTS_A_REQUEST} prompts a request")
        if fields.token_limit == 0 and not echoed_texts:
            raise invalid_field("max_tokens", "0 is possible with echo only")
        self.answer: GenerationAnswer = make_answer(model, fields, prompts, echoed_texts)
        self._events: asyncio.Queue[tuple[int, Sequence[GenerationEvent]]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        deadline = time.monotonic() + limits.timeout_s
        self.requests = [self._make_request(index, prompt, deadline) for index, prompt in enumerate(prompts)]

    def _make_request(self, index: int, prompt: tuple[int, ...], deadline: float) -> GenerationRequest:
        fields, tokenizer = self.fields, self.model.tokenizer
        stop_tokens = (() if fields.ignore_eos else tokenizer.stop_tokens) + tuple(fields.stop_token_ids)
        is_echoed = isinstance(fields, TextFields) and fields.echo and fields.logprobs is not None
        return GenerationRequest(
            prompt=prompt,
            max_tokens=self.model.max_completion_tokens(prompt, fields),
            params=SamplingParams(stop_tokens, fields.temperature, fields.top_p),
            deliver=partial(self._deliver, index),
            seed=secrets.randbits(63) if fields.seed is None else fields.seed,
            n=fields.n,
            stop=fields.stop_strings,
            stream=fields.stream,
            num_top_logps=fields.num_top_logps,
            echo_logps=is_echoed,
            prompt_index=index,
            deadline=deadline,
        )

    def _deliver(self, prompt_index: int, events: Sequence[GenerationEvent]) -> None:
        """Hand events to the event loop; called by the engine's thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, (prompt_index, events))

    def submit(self) -> None:
        """Queue the request. Raises APIError where the queue is full."""
        try:
            self.model.engine.submit(self.requests)
        except QueueFullError as error:
            message = "too many requests wait for this model; try again"
            raise APIError(503, message, code="engine_overloaded", headers=_RETRY_AFTER) from error

    def cancel(self) -> None:
        """Free the slots of what is not finished."""
        self.model.engine.cancel(self.requests)

    async def events(self) -> AsyncIterator[tuple[int, CompletionDelta | PromptLogps | None]]:
        """Yield the engine's events, each with its prompt's index; None where nothing came for a while.

        Raises:
            APIError: the engine failed, or the time limit was reached.
        """
        while not self.answer.is_finished:
            try:
                prompt_index, events = await asyncio.wait_for(self._events.get(), KEEP_ALIVE_S)
            except TimeoutError:
                yield 0, None
                continue
            for event in events:
                if isinstance(event, GenerationError):
                    raise APIError(_ERROR_STATUS[event.code], event.message, code=event.code)
                self.answer.add(prompt_index, event)
                yield prompt_index, event

    async def run(self) -> dict[str, Any]:
        """Return the whole answer."""
        try:
            async for _ in self.events():
                pass
        finally:
            self.cancel()
        return self.answer.to_json()

    async def stream(self) -> AsyncGenerator[str, None]:
        """Yield the answer as server-sent events; an error becomes the last event."""
        try:
            async for event in self._stream_chunks():
                yield event
        except APIError as error:
            yield format_event(error.body)
        finally:
            self.cancel()
        yield LAST_EVENT

    async def _stream_chunks(self) -> AsyncIterator[str]:
        for index, request in enumerate(self.requests):
            if not request.echo_logps:
                for chunk in self.answer.first_chunks(index):
                    yield format_event(chunk)
        async for prompt_index, event in self.events():
            if event is None:
                yield ": keep-alive\n\n"
            elif isinstance(event, PromptLogps):
                for chunk in self.answer.first_chunks(prompt_index):
                    yield format_event(chunk)
            else:
                yield format_event(self.answer.chunk(event))
        if self.fields.include_usage:
            yield format_event(self.answer.usage_chunk())


def _decode_prompt(model: ServedModel, ids: Sequence[int]) -> str:
    """Return a prompt as it is echoed: its tokens' text, special tokens included."""
    return str(model.tokenizer.hf_tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def format_event(body: dict[str, Any]) -> str:
    """Return a server-sent event. Unicode line separators are escaped: many clients end lines at them."""
    return f"data: {format_json_line(body)}\n"
