"""Sample the answers to a message side by side and pass them on while they are written.

The events of one turn: `{"answer": position, "text": …}` many times, `{"answer": position, "finish": …, "html": …}` or
`{"answer": position, "error": …}` once an answer, and at the end `{"done": true, …}`. `html` is the whole answer,
rendered as Markdown. Which model writes which answer is decided here at random and leaves the server only after the
turn was ranked, or with a turn that is not stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from random import SystemRandom
from typing import Any

import httpx

from instructgpt.label.markdown import render_markdown
from instructgpt.label.playground.endpoint import Delta, ModelEndpoint, ModelEndpointError
from instructgpt.label.playground.turns import SampledAnswer

_RANDOM = SystemRandom()
_MAX_SEED = 2**31 - 1
_PING_INTERVAL_S = 10.0
MAX_ANSWERS = 4
STOPPED = "stopped"
"""`finish` of an answer that the user stopped."""

Event = dict[str, Any]


@dataclass
class AnswerStream:
    """One answer in progress."""

    model: str
    sampling: dict[str, Any]
    text: str = ""
    finish: str | None = None
    checkpoint: str | None = None
    error: str | None = None

    def add(self, delta: Delta) -> None:
        self.text += delta.text
        self.finish = delta.finish or self.finish
        self.checkpoint = delta.checkpoint or self.checkpoint


@dataclass
class TurnStream:
    """All answers to one message. `stop_event` ends them early."""

    answers: list[AnswerStream]
    stop_event: asyncio.Event = field(default_factory=asyncio.Event)

    def sampled_answers(self) -> list[SampledAnswer]:
        """Return the answers as they were displayed; those that failed have an empty text and are left out."""
        return [
            SampledAnswer(position, row.model, row.checkpoint, row.sampling, row.text, row.finish or STOPPED)
            for position, row in enumerate(self.answers)
            if row.error is None and row.text
        ]


def assign_models(models: Sequence[str], count: int) -> list[str]:
    """Return the model of each position at random: all models differ while there are enough."""
    names = list(models)
    rounds = -(-count // len(names))
    assigned = [name for _ in range(rounds) for name in _RANDOM.sample(names, len(names))][:count]
    return _RANDOM.sample(assigned, count)


def create_turn_stream(models: Sequence[str], count: int, sampling: dict[str, Any]) -> TurnStream:
    """Prepare the answers, each with its own seed."""
    seeds = [_RANDOM.randrange(_MAX_SEED) for _ in range(count)]
    assigned = zip(assign_models(models, count), seeds, strict=True)
    return TurnStream([AnswerStream(model, {**sampling, "seed": seed}) for model, seed in assigned])


async def stream_answers(
    endpoint: ModelEndpoint, turn: TurnStream, messages: Sequence[dict[str, str]]
) -> AsyncIterator[Event | None]:
    """Yield the events of all answers as they come; None when nothing came for a while, to keep proxies awake."""
    queue: asyncio.Queue[Event] = asyncio.Queue()
    async with endpoint.client() as client:
        tasks = [
            asyncio.create_task(_run_answer(endpoint, client, position, answer, messages, queue))
            for position, answer in enumerate(turn.answers)
        ]
        stop_task = asyncio.create_task(turn.stop_event.wait())
        try:
            running = len(tasks)
            while running and not turn.stop_event.is_set():
                event = await _next_event(queue, stop_task)
                running -= event is not None and "text" not in event
                if event is not None or not turn.stop_event.is_set():
                    yield event
        finally:
            for task in (*tasks, stop_task):
                task.cancel()
            await asyncio.gather(*tasks, stop_task, return_exceptions=True)
    while not queue.empty():
        yield queue.get_nowait()  # what was added to an answer before it stopped is displayed, too
    for position, answer in enumerate(turn.answers):
        if answer.finish is None and answer.error is None:
            answer.finish = STOPPED
            yield await finish_event(position, answer.text, STOPPED)


async def finish_event(position: int, text: str, finish: str | None) -> Event:
    """Return the event that ends an answer."""
    return {"answer": position, "finish": finish, "html": str(await asyncio.to_thread(render_markdown, text))}


async def _run_answer(
    endpoint: ModelEndpoint,
    client: httpx.AsyncClient,
    position: int,
    answer: AnswerStream,
    messages: Sequence[dict[str, str]],
    queue: asyncio.Queue[Event],
) -> None:
    """Sample one answer into the queue."""
    try:
        async for delta in endpoint.stream_chat(client, answer.model, messages, answer.sampling):
            answer.add(delta)
            if delta.text:
                queue.put_nowait({"answer": position, "text": delta.text})
        queue.put_nowait(await finish_event(position, answer.text, answer.finish))
    except ModelEndpointError as error:
        answer.error = str(error)
        queue.put_nowait({"answer": position, "error": answer.error})


async def _next_event(queue: asyncio.Queue[Event], stop_task: asyncio.Task[Any]) -> Event | None:
    """Return the next event; None after a while, or when the turn is stopped."""
    event_task = asyncio.create_task(queue.get())
    await asyncio.wait({event_task, stop_task}, timeout=_PING_INTERVAL_S, return_when=asyncio.FIRST_COMPLETED)
    if event_task.done():
        return event_task.result()
    event_task.cancel()
    return None
