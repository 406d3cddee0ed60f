"""A model by its name: its engine, and requests as tokens."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from instructgpt.data.chat_template import PLAIN_TEMPLATE
from instructgpt.data.tokenization import PromptTokenizer
from instructgpt.errors import InputError
from instructgpt.models.head import vocabulary_rows
from instructgpt.models.policy import context_length, load_policy
from instructgpt.models.precision import free_gpu_memory
from instructgpt.records import Message, Prompt
from instructgpt.run.lineage import content_hash
from instructgpt.serve.engine import Engine
from instructgpt.serve.errors import invalid_field
from instructgpt.serve.request_fields import GenerationFields
from instructgpt.serve.text_stream import TokenTexts

_CACHE_SHARE = {"cpu": 1 / 8, "cuda": 1 / 2}
"""Share of a machine's memory, or of a GPU's free memory, for keys and values of each model."""


@dataclass(slots=True)
class ServedModel:
    """A loaded model behind a name."""

    name: str
    source: str
    engine: Engine
    tokenizer: PromptTokenizer
    texts: TokenTexts
    context: int
    weights_hash: str
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def load(cls, name: str, source: str, device: torch.device, max_rows: int, max_waiting: int) -> ServedModel:
        """Load a model and start its engine.

        Raises:
            InputError: the model cannot be loaded.
        """
        model, tokenizer = load_policy(source, device)
        cache_bytes = int(_memory_bytes(device) * _CACHE_SHARE.get(device.type, 1 / 8))
        engine = Engine(model, tokenizer, max_rows=max_rows, max_waiting=max_waiting, cache_bytes=cache_bytes)
        engine.start()
        texts, weights_hash = TokenTexts(tokenizer.hf_tokenizer), content_hash(Path(source))
        return cls(name, source, engine, tokenizer, texts, context_length(model), weights_hash)

    def describe(self) -> dict[str, Any]:
        """Return the model's entry in the list of models."""
        is_plain = str(self.tokenizer.hf_tokenizer.chat_template).endswith(PLAIN_TEMPLATE)
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "instructgpt",
            "root": Path(self.source).name,
            "parent": None,
            "max_model_len": self.context,
            "chat_template": "plain (the model has none of its own)" if is_plain else "model",
            "sha256": self.weights_hash,
        }

    def encode_chat(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        """Encode a conversation, ready for the answer. Raises APIError where the chat template refuses it."""
        try:
            return tuple(self.tokenizer.encode_prompt(Prompt.model_validate({"messages": messages})))
        except (InputError, ValueError) as error:
            raise invalid_field("messages", _first_reason(error)) from error

    def encode_texts(self, prompt: str | Sequence[Any]) -> list[tuple[int, ...]]:
        """Encode the prompts of a text completion: a text, texts, token ids, or lists of token ids."""
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            prompt = [prompt]
        if not prompt:
            raise invalid_field("prompt", "is an empty list")
        encoded = []
        for item in prompt:
            ids = self.tokenizer.encode_text(item) if isinstance(item, str) else item
            self.check_token_ids("prompt", ids)
            encoded.append(tuple(ids or [self.tokenizer.eos]))  # an empty prompt begins after the end of a text
        return encoded

    def check_token_ids(self, name: str, ids: Sequence[int]) -> None:
        """Raise APIError for ids that the model has no embedding for."""
        rows = vocabulary_rows(self.engine.model)
        for index in ids:
            if not 0 <= index < rows:
                raise invalid_field(name, f"the token id {index} is not one of the model's {rows}")

    def max_completion_tokens(self, prompt: Sequence[int], fields: GenerationFields) -> int:
        """Return the limit of a completion, shortened to the context.

        Raises:
            APIError: the prompt alone does not fit the context.
        """
        if len(prompt) > self.context:
            message = f"the prompt has {len(prompt)} tokens, the model's context is {self.context}"
            name = "prompt" if hasattr(fields, "prompt") else "messages"
            raise invalid_field(name, message, "context_length_exceeded")
        room = max(1, self.context - len(prompt))  # the last token is sampled, never fed
        return room if fields.token_limit is None else min(fields.token_limit, room)


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return free_gpu_memory(device)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _first_reason(error: Exception) -> str:
    if isinstance(error, InputError):
        return str(error)
    errors = getattr(error, "errors", None)
    return str(errors(include_url=False)[0]["msg"]).removeprefix("Value error, ") if errors else str(error)
