"""`sample` and `score`: completions of a file of prompts, and the reward model's scores of a file of completions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from instructgpt.config import Options
from instructgpt.errors import BadInput
from instructgpt.io import must_be_a_file
from instructgpt.models.policy import context_length, load_policy, pick_device
from instructgpt.models.reward_model import load_reward_model
from instructgpt.records import Asked, Completion, Message, Prompt, Record, Skipped, read_records, write_records
from instructgpt.run.directory import console
from instructgpt.sampling.completions import Generated, generate

DEVICE = "cpu, cuda, cuda:1 …; auto takes a GPU when there is one"


class SampleConfig(Options):
    """Completions of prompts."""

    stage: ClassVar[str] = "sample"

    out: Path = Field(description="the file of completions this makes")
    model: str = Field(description="a model directory or hub name")
    prompts: Path = Field(description="prompts")
    n: int = Field(1, ge=1, description="completions of each prompt")
    max_tokens: int = Field(256, ge=1, description="where a completion is cut off")
    temperature: float = Field(1.0, ge=0, description="1 samples from the model's own distribution, 0 takes the likeliest token")
    top_p: float = Field(1.0, gt=0, le=1, description="below 1, sample from the likeliest tokens that together have this probability")
    seed: int = Field(0, ge=0, lt=2**32, description="everything random follows from it")
    device: str = Field("auto", description=DEVICE)
    skip_bad: bool = Field(False, description="leave out bad lines and prompts that are too long, and count them")

    def inert(self) -> Iterator[str]:
        """At temperature 0 nothing is random."""
        if self.temperature == 0 and self.n > 1:
            yield f"--n {self.n} has no effect at --temperature 0, all completions of a prompt would be the same"
        if self.temperature == 0 and "seed" in self.model_fields_set:
            yield "--seed has no effect at --temperature 0"
        if self.temperature == 0 and self.top_p < 1:
            yield f"--top-p {self.top_p} has no effect at --temperature 0, the likeliest token is always in it"


class ScoreConfig(Options):
    """Scores of completions."""

    stage: ClassVar[str] = "score"

    out: Path = Field(description="the file of completions with scores this makes")
    reward: Path = Field(description="a reward model directory")
    data: Path = Field(description="completions, or demonstrations")
    device: str = Field("auto", description=DEVICE)
    skip_bad: bool = Field(False, description="leave out bad lines and completions that are too long, and count them")


class Answer(Record):
    """What can be scored: a prompt, or the messages of a conversation, and a completion. Both may be there, as `sample` writes them."""

    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    completion: str
    finish: Literal["stop", "length"] = "stop"

    @model_validator(mode="after")
    def _asked(self) -> Self:
        assert self.asked
        return self

    @property
    def asked(self) -> Asked:
        """What was asked. The messages say more than their text."""
        return Asked(messages=self.messages) if self.messages is not None else Asked(prompt=self.prompt)


def sample_completions(config: SampleConfig) -> Path:
    """Write one completions record for each prompt and each of its `n` samples. Returns the file.

    Raises:
        BadInput: a prompt leaves no room for a completion (and bad lines are not to be skipped), or none is left.
    """
    must_be_a_file(config.out)
    skipped = Skipped(config.skip_bad)
    prompts = read_records(Prompt, config.prompts, skipped)
    model, render = load_policy(config.model, pick_device(config.device))
    room = max(0, context_length(model) - config.max_tokens)
    kept = []
    for prompt in prompts:
        tokens = len(render.prompt(prompt))
        if tokens <= room:
            kept.append(prompt)
        else:
            reason = f"prompt '{beginning(prompt)}' has {tokens} tokens, the context leaves {room} before --max-tokens {config.max_tokens}"
            leave_out(f"{config.prompts}: {reason}", skipped)
    some_must_be_left(config.prompts, kept, skipped)
    how = {"max_tokens": config.max_tokens, "seed": config.seed}
    answers = generate(model, render, kept, temperature=config.temperature, top_p=config.top_p, per_prompt=config.n, **how)
    count = write_records(config.out, (completion_of(answer, config) for answer in answers))
    console.print(
        f"{count} completions of {len(kept)} prompts: {config.out}; left out: {len(skipped.reasons)}", markup=False, soft_wrap=True
    )
    return config.out


def completion_of(answer: Generated, config: SampleConfig) -> Completion:
    """A sampled completion as a record, with the columns of its prompt."""
    return Completion.model_validate(
        answer.prompt.row()  # a prompt's own columns stay with it
        | {
            "prompt": answer.prompt.text,
            "completion": answer.text,
            "model": config.model,
            "finish": "stop" if answer.finished else "length",
            "sampling": {"temperature": config.temperature, "max_tokens": config.max_tokens, "seed": config.seed}
            | ({"top_p": config.top_p} if config.top_p < 1 else {}),
        }
    )


def score_completions(config: ScoreConfig) -> Path:
    """Write the same records with a `score`. A completion cut off is scored at its last token. Returns the file.

    Raises:
        BadInput: a record does not fit the reward model's context (and bad lines are not to be skipped), or none is left.
    """
    must_be_a_file(config.out)
    skipped = Skipped(config.skip_bad)
    records = read_records(Answer, config.data, skipped)
    reward = load_reward_model(config.reward, pick_device(config.device))
    context = context_length(reward.model)
    kept, examples = [], []
    for record in records:
        example = reward.render.example(record.asked, record.completion, finished=record.finish == "stop")
        if len(example) <= context:
            kept.append(record)
            examples.append(example)
        else:
            reason = f"the completion of '{beginning(record.asked)}' makes {len(example)} tokens, the reward model's context is {context}"
            leave_out(f"{config.data}: {reason}", skipped)
    some_must_be_left(config.data, kept, skipped)
    scores = reward.score(examples).tolist()
    write_records(config.out, (record.model_copy(update={"score": score}) for record, score in zip(kept, scores, strict=True)))
    console.print(f"{len(scores)} scores: {config.out}; left out: {len(skipped.reasons)}", markup=False, soft_wrap=True)
    return config.out


def beginning(asked: Asked) -> str:
    """Enough of a prompt to find it by."""
    text = " ".join(asked.text.split())
    return text if len(text) <= 40 else text[:39] + "…"


def leave_out(reason: str, skipped: Skipped) -> None:
    """Note a record that is too long where such records may be skipped; raise BadInput where they may not."""
    if not skipped.allowed:
        raise BadInput(f"{reason}; shorten it, or leave such records out with --skip-bad")
    skipped.reasons.append(reason)


def some_must_be_left(file: Path, kept: list[Prompt] | list[Answer], skipped: Skipped) -> None:
    """Raises BadInput where nothing was kept."""
    if not kept:
        raise BadInput(f"{file}: nothing is left, {len(skipped.reasons)} records were left out; the first: {skipped.reasons[0]}")
