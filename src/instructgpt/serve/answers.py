"""The JSON of answers: whole ones and the chunks of a stream, of chat completions and of text completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from instructgpt.sampling.row_batch import TokenLogp
from instructgpt.serve.engine import CompletionDelta, PromptLogps
from instructgpt.serve.request_fields import ChatFields, GenerationFields, TextFields
from instructgpt.serve.served_model import ServedModel

_MIN_LOGP = -9999.0
"""JSON has no minus infinity; OpenAI's API writes this number."""


@dataclass(slots=True)
class Choice:
    """What is known of one completion."""

    index: int
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logps: list[tuple[int, TokenLogp]] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    def add(self, delta: CompletionDelta) -> None:
        """Append an event of the engine."""
        self.text += delta.text
        self.tokens += delta.tokens
        self.logps += delta.logps
        self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason


class GenerationAnswer:
    """The answer to one request. Subclasses write the two forms."""

    id_prefix = ""
    object_name = chunk_object_name = ""

    def __init__(self, model: ServedModel, fields: GenerationFields, prompts: Sequence[tuple[int, ...]]) -> None:
        self.model, self.fields, self.prompts = model, fields, prompts
        self.id = self.id_prefix + uuid.uuid4().hex
        self.created = int(time.time())
        self.choices = [Choice(index) for index in range(len(prompts) * fields.n)]
        self.prompt_logps: dict[int, tuple[TokenLogp, ...]] = {}

    def add(self, prompt_index: int, event: CompletionDelta | PromptLogps) -> None:
        """Take an event of the engine."""
        if isinstance(event, PromptLogps):
            self.prompt_logps[prompt_index] = event.logps
        else:
            self.choices[event.index].add(event)

    @property
    def is_finished(self) -> bool:
        return all(choice.finish_reason is not None for choice in self.choices)

    def usage(self) -> dict[str, int]:
        """Return the tokens of the prompts, each counted once, and of the completions, stop tokens included."""
        prompt_tokens = sum(map(len, self.prompts))
        completion_tokens = sum(len(choice.tokens) for choice in self.choices)
        total = prompt_tokens + completion_tokens
        return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}

    def _head(self, object_name: str) -> dict[str, Any]:
        head = {"id": self.id, "object": object_name, "created": self.created, "model": self.model.name}
        return head | {"system_fingerprint": f"fp_{self.model.weights_hash[:12]}"}

    def to_json(self) -> dict[str, Any]:
        """Return the whole answer."""
        choices = [self.format_choice(choice) for choice in self.choices]
        return self._head(self.object_name) | {"choices": choices, "usage": self.usage()} | self._prompt_ids()

    def first_chunks(self, prompt_index: int) -> Iterator[dict[str, Any]]:
        """Yield what comes before any token of a prompt's completions."""
        raise NotImplementedError

    def chunk(self, delta: CompletionDelta) -> dict[str, Any]:
        """Return the chunk of an event."""
        choice = self.format_delta(delta)
        if self.fields.return_token_ids:
            choice["token_ids"] = list(delta.tokens)
        return self._head(self.chunk_object_name) | {"choices": [choice]}

    def usage_chunk(self) -> dict[str, Any]:
        return self._head(self.chunk_object_name) | {"choices": [], "usage": self.usage()}

    def format_choice(self, choice: Choice) -> dict[str, Any]:
        raise NotImplementedError

    def format_delta(self, delta: CompletionDelta) -> dict[str, Any]:
        raise NotImplementedError

    def _prompt_ids(self) -> dict[str, Any]:
        return {}

    def _choices_of(self, prompt_index: int) -> list[Choice]:
        return self.choices[prompt_index * self.fields.n : (prompt_index + 1) * self.fields.n]

    def _prompt_index(self, choice_index: int) -> int:
        return choice_index // self.fields.n


class ChatAnswer(GenerationAnswer):
    id_prefix, object_name, chunk_object_name = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def first_chunks(self, prompt_index: int) -> Iterator[dict[str, Any]]:
        """Yield the role of each completion."""
        for choice in self._choices_of(prompt_index):
            delta = {"role": "assistant", "content": ""}
            item = {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}
            yield self._head(self.chunk_object_name) | {"choices": [item]} | self._prompt_ids()

    def format_delta(self, delta: CompletionDelta) -> dict[str, Any]:
        return {
            "index": delta.index,
            "delta": {"content": delta.text} if delta.text or delta.finish_reason is None else {},
            "logprobs": self._format_logps(delta.logps),
            "finish_reason": delta.finish_reason,
            **({"stop_reason": delta.stop_reason} if delta.finish_reason is not None else {}),
        }

    def format_choice(self, choice: Choice) -> dict[str, Any]:
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": self._format_logps(choice.logps),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
            **({"token_ids": choice.tokens} if self.fields.return_token_ids else {}),
        }

    def _prompt_ids(self) -> dict[str, Any]:
        return {"prompt_token_ids": list(self.prompts[0])} if self.fields.return_token_ids else {}

    def _format_logps(self, logps: Sequence[tuple[int, TokenLogp]]) -> dict[str, Any] | None:
        if self.fields.num_top_logps is None:
            return None
        content = [
            self._format_token(entry.token, entry.logp)
            | {"top_logprobs": [self._format_token(token, logp) for token, logp in entry.top]}
            for _, entry in logps
        ]
        return {"content": content, "refusal": None}

    def _format_token(self, token: int, logp: float | None) -> dict[str, Any]:
        texts = self.model.texts
        return {
            "token": texts.token_text(token),
            "logprob": _MIN_LOGP if logp is None else max(logp, _MIN_LOGP),
            "bytes": list(texts.token_bytes(token)),
        }


class TextAnswer(GenerationAnswer):
    id_prefix, object_name, chunk_object_name = "cmpl-", "text_completion", "text_completion"

    def __init__(
        self,
        model: ServedModel,
        fields: TextFields,
        prompts: Sequence[tuple[int, ...]],
        echoed_texts: Sequence[str],
    ) -> None:
        super().__init__(model, fields, prompts)
        self.echoed_texts = echoed_texts

    def first_chunks(self, prompt_index: int) -> Iterator[dict[str, Any]]:
        """Yield the prompts where they are echoed or their ids are returned."""
        if not (isinstance(self.fields, TextFields) and (self.fields.echo or self.fields.return_token_ids)):
            return
        for choice in self._choices_of(prompt_index):
            item = {
                "index": choice.index,
                "text": self._echoed_text(choice.index),
                "logprobs": self._format_logps(self._echoed_logps(choice.index), [], 0),
                "finish_reason": None,
                **self._choice_prompt_ids(choice.index),
            }
            yield self._head(self.chunk_object_name) | {"choices": [item]}

    def format_delta(self, delta: CompletionDelta) -> dict[str, Any]:
        return {
            "index": delta.index,
            "text": delta.text,
            "logprobs": self._format_logps([], delta.logps, len(self._echoed_text(delta.index))),
            "finish_reason": delta.finish_reason,
            **({"stop_reason": delta.stop_reason} if delta.finish_reason is not None else {}),
        }

    def format_choice(self, choice: Choice) -> dict[str, Any]:
        echoed = self._echoed_text(choice.index)
        return {
            "index": choice.index,
            "text": echoed + choice.text,
            "logprobs": self._format_logps(self._echoed_logps(choice.index), choice.logps, len(echoed)),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
            **({"token_ids": choice.tokens} if self.fields.return_token_ids else {}),
            **self._choice_prompt_ids(choice.index),
        }

    def _choice_prompt_ids(self, index: int) -> dict[str, Any]:
        ids = self.prompts[self._prompt_index(index)]
        return {"prompt_token_ids": list(ids)} if self.fields.return_token_ids else {}

    def _echoed_text(self, index: int) -> str:
        return self.echoed_texts[self._prompt_index(index)] if self.echoed_texts else ""

    def _echoed_logps(self, index: int) -> Sequence[TokenLogp]:
        return self.prompt_logps.get(self._prompt_index(index), ())

    def _format_logps(
        self, echoed: Sequence[TokenLogp], sampled: Sequence[tuple[int, TokenLogp]], offset: int
    ) -> dict[str, Any] | None:
        """Return the four lists of the API; characters are counted from the beginning of the answer's text."""
        if self.fields.num_top_logps is None:
            return None
        texts = self.model.texts
        lengths = [len(texts.token_bytes(entry.token).decode(errors="replace")) for entry in echoed]
        offsets = [0, *accumulate(lengths)][: len(echoed)] + [offset + start for start, _ in sampled]
        entries = [*echoed, *(entry for _, entry in sampled)]
        return {
            "tokens": [texts.token_text(entry.token) for entry in entries],
            "token_logprobs": [None if entry.logp is None else max(entry.logp, _MIN_LOGP) for entry in entries],
            "top_logprobs": [self._format_top(entry) for entry in entries],
            "text_offset": offsets,
        }

    def _format_top(self, entry: TokenLogp) -> dict[str, float] | None:
        """Return the likeliest tokens by their text, and the token itself; equal texts keep the likelier."""
        if entry.logp is None:
            return None
        top: dict[str, float] = {}
        for token, logp in (*entry.top, (entry.token, entry.logp)):
            top.setdefault(self.model.texts.token_text(token), max(logp, _MIN_LOGP))
        return top


def make_answer(
    model: ServedModel, fields: GenerationFields, prompts: Sequence[tuple[int, ...]], echoed_texts: Sequence[str]
) -> GenerationAnswer:
    """Return the answer in the form that the request's fields belong to."""
    if isinstance(fields, ChatFields):
        return ChatAnswer(model, fields, prompts)
    assert isinstance(fields, TextFields)
    return TextAnswer(model, fields, prompts, echoed_texts)
