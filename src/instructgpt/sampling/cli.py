"""`sample` and `score`: completions of a file of prompts, and the reward model's scores of a file of completions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from instructgpt.config import CommandConfig
from instructgpt.errors import InputError
from instructgpt.io import check_output_file
from instructgpt.models.policy import context_length, load_policy, pick_device
from instructgpt.models.reward_model import load_reward_model
from instructgpt.records import (
    Completion,
    Message,
    Prompt,
    PromptFields,
    Record,
    SkippedLines,
    read_records,
    write_records,
)
from instructgpt.run.directory import console
from instructgpt.sampling.completions import SampledCompletion, generate

_DEVICE_HELP = "cpu, cuda, cuda:1 …; auto takes a GPU when there is one"


class SampleConfig(CommandConfig):
    """Completions of prompts."""

    stage: ClassVar[str] = "sample"

    out: Path = Field(description="the file of completions this makes")
    model: str = Field(description="a model directory or hub name")
    prompts: Path = Field(description="prompts")
    n: int = Field(1, ge=1, description="completions of each prompt")
    max_tokens: int = Field(256, ge=1, description="where a completion is cut off")
    temperature: float = Field(
        1.0, ge=0, description="1 samples from the model's own distribution, 0 takes the likeliest token"
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="below 1, sample from the likeliest tokens that together have this probability"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="everything random follows from it")
    device: str = Field("auto", description=_DEVICE_HELP)
    skip_bad: bool = Field(False, description="leave out bad lines and prompts that are too long, and count them")

    def ineffective_options(self) -> Iterator[str]:
        """At temperature 0 nothing is random."""
        if self.temperature == 0 and self.n > 1:
            yield f"--n {self.n} has no effect at --temperature 0, all completions of a prompt would be the same"
        if self.temperature == 0 and "seed" in self.model_fields_set:
            yield "--seed has no effect at --temperature 0"
        if self.temperature == 0 and self.top_p < 1:
            yield f"--top-p {self.top_p} has no effect at --temperature 0, the likeliest token is always in it"


class ScoreConfig(CommandConfig):
    """Scores of completions."""

    stage: ClassVar[str] = "score"

    out: Path = Field(description="the file of completions with scores this makes")
    reward: Path = Field(description="a reward model directory")
    data: Path = Field(description="completions, or demonstrations")
    device: str = Field("auto", description=_DEVICE_HELP)
    skip_bad: bool = Field(False, description="leave out bad lines and completions that are too long, and count them")


class ScoredInput(Record):
    """What can be scored: a prompt, or the messages of a conversation, and a completion. Both may be there, as `sample` writes them."""

    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    completion: str
    finish: Literal["stop", "length"] = "stop"

    @model_validator(mode="after")
    def _check_prompt(self) -> Self:
        assert self.prompt_fields
        return self

    @property
    def prompt_fields(self) -> PromptFields:
        """What was asked. The messages say more than their text."""
        return PromptFields(messages=self.messages) if self.messages is not None else PromptFields(prompt=self.prompt)


def sample_completions(config: SampleConfig) -> Path:
    """Write one completions record for each prompt and each of its `n` samples. Returns the file.

    Raises:
        BadInput: a prompt leaves no room for a completion (and bad lines are not to be skipped), or none is left.
    """
    check_output_file(config.out)
    skipped = SkippedLines(config.skip_bad)
    prompts = read_records(Prompt, config.prompts, skipped)
    model, tokenizer = load_policy(config.model, pick_device(config.device))
    max_prompt_tokens = max(0, context_length(model) - config.max_tokens)
    accepted_prompts = []
    for prompt in prompts:
        prompt_tokens = len(tokenizer.encode_prompt(prompt))
        if prompt_tokens <= max_prompt_tokens:
            accepted_prompts.append(prompt)
        else:
            reason = f"prompt '{_preview(prompt)}' has {prompt_tokens} tokens, the context leaves {max_prompt_tokens} before --max-tokens {config.max_tokens}"
            _skip_too_long(f"{config.prompts}: {reason}", skipped)
    _require_nonempty(config.prompts, accepted_prompts, skipped)
    sampling_options = {"max_tokens": config.max_tokens, "seed": config.seed}
    completions = generate(
        model,
        tokenizer,
        accepted_prompts,
        temperature=config.temperature,
        top_p=config.top_p,
        per_prompt=config.n,
        **sampling_options,
    )
    count = write_records(config.out, (_to_completion_record(completion, config) for completion in completions))
    console.print(
        f"{count} completions of {len(accepted_prompts)} prompts: {config.out}; left out: {len(skipped.reasons)}",
        markup=False,
        soft_wrap=True,
    )
    return config.out


def _to_completion_record(completion: SampledCompletion, config: SampleConfig) -> Completion:
    """A sampled completion as a record, with the columns of its prompt."""
    return Completion.model_validate(
        completion.prompt.to_dict()  # a prompt's own columns stay with it
        | {
            "prompt": completion.prompt.text,
            "completion": completion.text,
            "model": config.model,
            "finish": "stop" if completion.finished else "length",
            "sampling": {"temperature": config.temperature, "max_tokens": config.max_tokens, "seed": config.seed}
            | ({"top_p": config.top_p} if config.top_p < 1 else {}),
        }
    )


def score_completions(config: ScoreConfig) -> Path:
    """Write the same records with a `score`. A completion cut off is scored at its last token. Returns the file.

    Raises:
        BadInput: a record does not fit the reward model's context (and bad lines are not to be skipped), or none is left.
    """
    check_output_file(config.out)
    skipped = SkippedLines(config.skip_bad)
    records = read_records(ScoredInput, config.data, skipped)
    reward_model = load_reward_model(config.reward, pick_device(config.device))
    max_length = context_length(reward_model.model)
    accepted_records, examples = [], []
    for record in records:
        example = reward_model.tokenizer.encode_example(
            record.prompt_fields, record.completion, finished=record.finish == "stop"
        )
        if len(example) <= max_length:
            accepted_records.append(record)
            examples.append(example)
        else:
            reason = f"the completion of '{_preview(record.prompt_fields)}' makes {len(example)} tokens, the reward model's context is {max_length}"
            _skip_too_long(f"{config.data}: {reason}", skipped)
    _require_nonempty(config.data, accepted_records, skipped)
    scores = reward_model.score(examples).tolist()
    write_records(
        config.out,
        (record.model_copy(update={"score": score}) for record, score in zip(accepted_records, scores, strict=True)),
    )
    console.print(f"{len(scores)} scores: {config.out}; left out: {len(skipped.reasons)}", markup=False, soft_wrap=True)
    return config.out


def _preview(prompt: PromptFields) -> str:
    """Enough of a prompt to find it by."""
    text = " ".join(prompt.text.split())
    return text if len(text) <= 40 else text[:39] + "…"


def _skip_too_long(reason: str, skipped: SkippedLines) -> None:
    """Note a record that is too long where such records may be skipped; raise BadInput where they may not."""
    if not skipped.allowed:
        raise InputError(f"{reason}; shorten it, or leave such records out with --skip-bad")
    skipped.reasons.append(reason)


def _require_nonempty(path: Path, records: list[Prompt] | list[ScoredInput], skipped: SkippedLines) -> None:
    """Raises BadInput where nothing was kept."""
    if not records:
        raise InputError(
            f"{path}: nothing is left, {len(skipped.reasons)} records were left out; the first: {skipped.reasons[0]}"
        )
