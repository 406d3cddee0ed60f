"""The fields of a request: those that have an effect, those that may be sent, those that are refused by name.

`null` is an absent field. A field without an effect here passes at the value that changes nothing, and is an error
at any other: an answer that silently ignores what was asked for is worse than none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from instructgpt.config import did_you_mean
from instructgpt.errors import one_line
from instructgpt.records import Message
from instructgpt.serve.errors import APIError, invalid_field

MAX_COMPLETIONS_A_REQUEST = 128
MAX_TOP_LOGPS = 20
MAX_STOP_STRINGS, MAX_STOP_LENGTH = 16, 1_000

ACCEPTED_FIELDS = frozenset(
    (
        "metadata",
        "parallel_tool_calls",
        "priority",
        "prompt_cache_key",
        "prompt_cache_retention",
        "request_id",
        "safety_identifier",
        "service_tier",
        "session_id",
        "user",
    )
)
"""Fields about the sender or about scheduling: they may have any value, and change no completion."""

NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "add_special_tokens": (True,),
    "allowed_token_ids": ([],),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "min_p": (0,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "prediction": (),
    "presence_penalty": (0,),
    "prompt_logprobs": (),
    "reasoning_effort": ("none",),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_k": (0, -1),
    "truncate_prompt_tokens": (-1,),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Fields that this server does not implement, with the values at which they change nothing."""


_MODEL_CONFIG = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(BaseModel):
    model_config = _MODEL_CONFIG
    include_usage: bool = False
    include_obfuscation: bool = False
    continuous_usage_stats: Literal[False] = False


class GenerationFields(BaseModel):
    """What chat completions and text completions have in common."""

    model_config = _MODEL_CONFIG

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    n: Annotated[int, Field(ge=1, le=MAX_COMPLETIONS_A_REQUEST)] = 1
    seed: int | None = None
    stop: str | list[str] = []
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False
    store: bool = False

    @property
    def stop_strings(self) -> tuple[str, ...]:
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        return tuple(dict.fromkeys(text for text in stop if text))

    @property
    def token_limit(self) -> int | None:
        """Completion tokens at most; None: up to the context."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_top_logps(self) -> int | None:
        """Likeliest tokens reported with each token; None: no log-probabilities at all."""
        raise NotImplementedError

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatFields(GenerationFields):
    messages: list[dict[str, Any]]
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPS)] = 0
    echo: Literal[False] = False

    @property
    def num_top_logps(self) -> int | None:
        return self.top_logprobs if self.logprobs else None


class TextFields(GenerationFields):
    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPS)] | None = None
    echo: bool = False

    @property
    def num_top_logps(self) -> int | None:
        return self.logprobs


_FieldsT = TypeVar("_FieldsT", bound=GenerationFields)


def parse_fields(fields_class: type[_FieldsT], body: Any) -> _FieldsT:
    """Check a request's JSON.

    Raises:
        APIError: a field is unknown, has a value that cannot be met, or is missing; the error names it.
    """
    if not isinstance(body, dict):
        raise APIError(400, "expected a JSON object")
    present = {name: value for name, value in body.items() if value is not None}
    if "stream_options" in present and not present.get("stream"):
        raise invalid_field("stream_options", "has an effect only with stream: true")
    values: dict[str, Any] = {}
    for name, value in present.items():
        if name in fields_class.model_fields:
            values[name] = value
        elif name not in ACCEPTED_FIELDS:
            _require_neutral(name, value, present, fields_class)
    if isinstance(values.get("stream_options"), dict):
        values["stream_options"] = {k: v for k, v in values["stream_options"].items() if v is not None}
    try:
        fields = fields_class.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "request"
        message = "is required" if first["type"] == "missing" else one_line(first["msg"].removeprefix("Value error, "))
        raise invalid_field(name, message) from error
    if len(fields.stop_strings) > MAX_STOP_STRINGS or any(len(x) > MAX_STOP_LENGTH for x in fields.stop_strings):
        raise invalid_field("stop", f"at most {MAX_STOP_STRINGS} texts of {MAX_STOP_LENGTH} characters")
    if isinstance(fields, ChatFields) and fields.top_logprobs and not fields.logprobs:
        raise invalid_field("top_logprobs", "needs logprobs: true")
    return fields


def _require_neutral(name: str, value: Any, present: Mapping[str, Any], fields_class: type[GenerationFields]) -> None:
    """Raise APIError unless a field that this server does not implement changes nothing."""
    if name not in NEUTRAL_VALUES:
        valid_names = [*fields_class.model_fields, *NEUTRAL_VALUES, *ACCEPTED_FIELDS]
        raise invalid_field(name, f"unknown field{did_you_mean(name, valid_names)}", "unknown_parameter")
    neutral = (*NEUTRAL_VALUES[name], *((present.get("n", 1),) if name == "best_of" else ()))
    if not any(value == x and isinstance(value, bool) == isinstance(x, bool) for x in neutral):
        hint = " or ".join(repr(x) for x in NEUTRAL_VALUES[name]) or "null"
        raise invalid_field(name, f"is not supported by this server (only {hint})", "unsupported_parameter")


_IGNORED_MESSAGE_KEYS = frozenset({"name", "type", "refusal", "annotations", "audio", "function_call", "tool_calls"})


def parse_messages(messages: list[dict[str, Any]]) -> tuple[Message, ...]:
    """Read the messages of a chat. The last one is to be answered.

    Raises:
        APIError: a message is no text of a system, user or assistant turn.
    """
    parsed = []
    for position, row in enumerate(messages):
        turn = {name: value for name, value in row.items() if value is not None}
        for name in ("audio", "function_call", "tool_calls"):
            if turn.get(name):
                raise invalid_field("messages", f"message {position} has {name}, which this server does not support")
        turn = {name: value for name, value in turn.items() if name not in _IGNORED_MESSAGE_KEYS}
        if turn.get("role") == "developer":
            turn["role"] = "system"
        if turn.get("role") == "assistant":
            turn.setdefault("content", "")  # clients send null for a turn without text
        try:
            parsed.append(Message.model_validate(turn))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"][:1])) or "message"
            reason = "is required" if first["type"] == "missing" else first["msg"].removeprefix("Value error, ")
            raise invalid_field("messages", f"message {position}, {place}: {one_line(reason)}") from error
    if not parsed:
        raise invalid_field("messages", "is empty")
    if parsed[-1].role == "assistant":
        raise invalid_field("messages", "must end with the turn to answer, not with the assistant's")
    return tuple(parsed)
