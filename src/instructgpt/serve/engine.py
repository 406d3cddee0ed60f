"""The thread that samples: requests wait in a bounded queue, their rows enter a running batch and leave when finished.

A request gives `deliver` a list of events: text as it becomes certain for a stream, otherwise one event a completion.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from instructgpt.data.tokenization import PromptTokenizer
from instructgpt.errors import one_line
from instructgpt.models.precision import compute_device
from instructgpt.sampling.decoder import SamplingParams
from instructgpt.sampling.row_batch import Row, RowBatch, TokenLogp, prompt_token_logps
from instructgpt.serve.text_stream import TextStream

_log = logging.getLogger("instructgpt.serve")

FinishReason = Literal["stop", "length"]
PREFILL_TOKENS = {"cpu": 512, "cuda": 16_384}
"""Prompt tokens computed between two steps, by device type, so that running rows do not wait long."""


@dataclass(frozen=True, slots=True)
class CompletionDelta:
    """New text and tokens of one completion; `finish_reason` is set on its last event."""

    index: int
    text: str
    tokens: tuple[int, ...] = ()
    logps: tuple[tuple[int, TokenLogp], ...] = ()
    """Tokens with the position of their first character in the completion."""
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    """The stop string or stop token that ended the completion; None for the end of the turn or the length."""


@dataclass(frozen=True, slots=True)
class PromptLogps:
    """The logps of the prompt's tokens, before all completions."""

    logps: tuple[TokenLogp, ...]


@dataclass(frozen=True, slots=True)
class GenerationError:
    """The request has ended without its completions."""

    message: str
    code: Literal["timeout", "internal_error", "shutdown"]


GenerationEvent = CompletionDelta | PromptLogps | GenerationError


@dataclass(slots=True, eq=False)
class GenerationRequest:
    """A prompt and how its completions are sampled.

    Attributes:
        n: completions, which share one prefill.
        max_tokens: 0 computes the prompt's logps alone.
        num_top_logps: likeliest tokens reported with each token; None: no logps.
        prompt_index: index of the prompt among those of its call.
        echo_logps: whether the prompt's logps are reported too.
        deadline: of `time.monotonic()`.
        deliver: called from the engine's thread.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    params: SamplingParams
    deliver: Callable[[Sequence[GenerationEvent]], None]
    seed: int
    n: int = 1
    stop: tuple[str, ...] = ()
    stream: bool = False
    num_top_logps: int | None = None
    echo_logps: bool = False
    prompt_index: int = 0
    deadline: float = float("inf")
    is_cancelled: bool = False

    @property
    def first_index(self) -> int:
        """Index of its first completion in the answer."""
        return self.prompt_index * self.n


@dataclass(slots=True, eq=False)
class _ActiveRow:
    """A row of a request, with its text and what was not delivered yet."""

    request: GenerationRequest
    row: Row
    text: TextStream
    pending_text: str = ""
    pending_tokens: list[int] = field(default_factory=list)
    pending_logps: list[tuple[int, TokenLogp]] = field(default_factory=list)

    @property
    def index(self) -> int:
        """The completion's index in the answer."""
        return self.request.first_index + self.row.index

    def advance(self, token_logp: TokenLogp | None) -> CompletionDelta | None:
        """Take the row's newest token; return an event where there is something to deliver."""
        token = self.row.tokens[-1]
        start = len(self.text.text)
        is_end = self.row.is_stopped
        if not is_end:
            self.pending_text += self.text.push(token)
        self.pending_tokens.append(token)
        if token_logp is not None:
            self.pending_logps.append((start, token_logp))
        is_cut = self.text.stop_text is not None
        if is_cut or self.row.is_finished:
            return self._last_delta(is_cut, is_end)
        if not self.request.stream or not self.pending_text:
            return None
        num_shown = self.text.num_emitted
        logps = tuple(x for x in self.pending_logps if x[0] < num_shown)
        delta = CompletionDelta(self.index, self.pending_text, tuple(self.pending_tokens), logps)
        self.pending_text, self.pending_tokens = "", []
        self.pending_logps = self.pending_logps[len(logps) :]
        return delta

    def _last_delta(self, is_cut: bool, is_end: bool) -> CompletionDelta:
        text = self.pending_text + self.text.finish()
        logps = self.pending_logps
        if is_cut:  # tokens of the stop string are as invisible as its text
            logps = [x for x in logps if x[0] < len(self.text.text)]
        stop_reason = self.text.stop_text if is_cut else None
        reason: FinishReason = "stop" if is_cut or is_end else "length"
        tokens = tuple(self.pending_tokens)
        return CompletionDelta(self.index, text, tokens, tuple(logps), reason, stop_reason)


@dataclass(slots=True)
class EngineStats:
    """Counters since the start."""

    requests: int = 0
    completions: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prefills: int = 0
    steps: int = 0
    cancelled: int = 0
    failed: int = 0


class QueueFullError(Exception):
    """As many requests wait as may wait."""


class Engine:
    """A model with its thread."""

    def __init__(
        self, model: Any, tokenizer: PromptTokenizer, *, max_rows: int = 64, max_waiting: int = 256, cache_bytes: int
    ) -> None:
        self.model, self.tokenizer, self.max_waiting = model, tokenizer, max_waiting
        self.batch = RowBatch(model, max_rows, cache_bytes)
        self.stats = EngineStats()
        self._waiting: deque[_ActiveRow] = deque()
        self._active: dict[Row, _ActiveRow] = {}
        self._new: deque[GenerationRequest] = deque()
        self._condition = threading.Condition()
        self._is_closing = False
        self._num_open = 0
        self._prefill_tokens = PREFILL_TOKENS.get(compute_device(model).type, PREFILL_TOKENS["cpu"])
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread. Requests that are not finished get an error."""
        with self._condition:
            self._is_closing = True
            self._condition.notify()
        self._thread.join()

    @property
    def num_running(self) -> int:
        return len(self._active)

    @property
    def num_waiting(self) -> int:
        """Completions that wait for a slot."""
        return len(self._waiting) + sum(request.n for request in tuple(self._new))

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Queue the requests of one call, all or none.

        Raises:
            QueueFullError: too many completions wait.
        """
        with self._condition:
            present = self.num_running + self.num_waiting
            if present and present + sum(request.n for request in requests) > self.batch.max_rows + self.max_waiting:
                raise QueueFullError
            self._new += requests
            self._condition.notify()

    def cancel(self, requests: Sequence[GenerationRequest]) -> None:
        """Free the slots of requests before the next step. Finished requests are left alone."""
        for request in requests:
            request.is_cancelled = True

    def _run(self) -> None:
        while True:
            with self._condition:
                while not (self._new or self._waiting or self._active or self._is_closing):
                    self._condition.wait()
                if self._is_closing:
                    break
            try:
                self._iterate()
            except Exception as error:  # out of memory, a fault of a family: requests fail, the server goes on
                _log.exception("the engine failed")
                self._fail_all(GenerationError(one_line(error, 200), "internal_error"))
        self._fail_all(GenerationError("the server stops", "shutdown"))

    def _fail_all(self, error: GenerationError) -> None:
        rows = [*self._active.values(), *self._waiting]
        requests = {id(x): x for x in [*(active.request for active in rows), *self._new]}
        self.batch.remove(list(self.batch.rows))
        self._active.clear()
        self._waiting.clear()
        self._new.clear()
        self.stats.failed += len(requests)
        for request in requests.values():
            request.deliver([error])

    def _iterate(self) -> None:
        """Drop cancelled and late requests, let waiting rows enter, and sample a token for every row."""
        self._open_requests()
        self._drop_ended()
        self._admit()
        if not self._active:
            return
        self._step()

    def _step(self) -> None:
        """Sample tokens, let finished rows leave, and deliver what is certain."""
        sampled = self.batch.step()
        self.stats.steps += 1
        self.stats.completion_tokens += len(sampled)
        deltas: dict[GenerationRequest, list[CompletionDelta]] = {}
        finished = []
        for row, token_logp in sampled:
            delta = self._active[row].advance(token_logp)
            if delta is not None:
                deltas.setdefault(self._active[row].request, []).append(delta)
                if delta.finish_reason is not None:
                    finished.append(row)
        self._remove(finished)
        self.stats.completions += len(finished)
        for request, events in deltas.items():
            request.deliver(events)

    def _remove(self, rows: Sequence[Row]) -> None:
        self.batch.remove(rows)
        for row in rows:
            del self._active[row]

    def _open_requests(self) -> None:
        """Make rows of new requests, and compute the logps of their prompts where these are echoed."""
        budget = self._prefill_tokens
        while self._new and budget > 0:
            request = self._new.popleft()
            if request.is_cancelled:
                continue
            self.stats.requests += 1
            self.stats.prompt_tokens += len(request.prompt)
            if request.echo_logps:
                logps = prompt_token_logps(self.model, request.prompt, request.num_top_logps or 0)
                request.deliver([PromptLogps(tuple(logps))])
                budget -= len(request.prompt)
            if request.max_tokens == 0:
                indices = range(request.first_index, request.first_index + request.n)
                request.deliver([CompletionDelta(index, "", finish_reason="length") for index in indices])
                continue
            for i in range(request.n):
                row = Row(
                    request.prompt,
                    request.params,
                    request.max_tokens,
                    request.seed,
                    i,
                    request.num_top_logps,
                    request.prompt_index,
                )
                self._waiting.append(_ActiveRow(request, row, TextStream(self.tokenizer.decode, request.stop)))

    def _drop_ended(self) -> None:
        now = time.monotonic()
        late: dict[int, GenerationRequest] = {}
        for active in (*self._active.values(), *self._waiting):
            request = active.request
            if not request.is_cancelled and now > request.deadline:
                late[id(request)] = request
        for request in late.values():
            request.is_cancelled = True
            self.stats.failed += 1
            request.deliver([GenerationError("the request took longer than the time limit", "timeout")])
        ended = [row for row, active in self._active.items() if active.request.is_cancelled]
        if ended or any(active.request.is_cancelled for active in self._waiting):
            self._waiting = deque(active for active in self._waiting if not active.request.is_cancelled)
            self.stats.cancelled += len(ended)
            self._remove(ended)

    def _admit(self) -> None:
        """Let rows enter in the order of their arrival, as long as they fit, each with its first token."""
        budget = self._prefill_tokens
        while self._waiting and budget > 0 and self.batch.fits(self._waiting[0].row):
            active = self._waiting.popleft()
            self._active[active.row] = active
            if self.batch.add(active.row):
                self.stats.prefills += 1
                budget -= len(active.row.prompt)
            shares_next = bool(self._waiting) and self._waiting[0].request is active.request
            if active.row.prompt_logits is not None and not shares_next:
                self._step()
