"""`sample` and `score`: completions of a file of prompts, and the reward model's scores of a file of completions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from instructgpt.config import StageConfig
from instructgpt.errors import BadInput
from instructgpt.generate.text import generate
from instructgpt.models.load import context_length, load_policy, pick_device
from instructgpt.models.scalar import load_reward_model
from instructgpt.records import Completion, Demonstration, Prompt, Record, Skipped, read_records, write_records
from instructgpt.run import console


class SampleConfig(StageConfig):
    """Completions of prompts."""

    stage: ClassVar[str] = "sample"

    model: str = Field(description="a model directory or hub name")
    prompts: Path = Field(description="prompts")
    n: int = Field(1, ge=1, description="completions of each prompt")
    max_tokens: int = Field(256, ge=1, description="where a completion is cut off")
    temperature: float = Field(1.0, ge=0, description="1 samples from the model's own distribution, 0 takes the likeliest token")
    skip_bad: bool = Field(False, description="leave out bad lines and prompts that are too long, and count them")

    def inert(self) -> Iterator[str]:
        """Several completions at temperature 0 would all be the same."""
        if self.n > 1 and self.temperature == 0:
            yield f"--n {self.n} has no effect at --temperature 0, all completions of a prompt would be the same"


class ScoreConfig(StageConfig):
    """Scores of completions."""

    stage: ClassVar[str] = "score"

    reward: Path = Field(description="a reward model directory")
    data: Path = Field(description="completions, or demonstrations")
    skip_bad: bool = Field(False, description="leave bad lines out and count them")


def sample_completions(config: SampleConfig) -> Path:
    """Write one completions record for each prompt and each of its `n` samples. Returns the file.

    Raises:
        BadInput: a prompt leaves no room for a completion (and bad lines are not to be skipped).
    """
    model, render = load_policy(config.model, pick_device(config.device))
    skipped = Skipped()
    prompts = read_records(Prompt, config.prompts, skipped if config.skip_bad else None)
    room = context_length(model) - config.max_tokens
    kept: list[Prompt] = []
    for number, prompt in enumerate(prompts, 1):
        length = len(render.prompt(prompt))
        if length <= room:
            kept.append(prompt)
            continue
        reason = f"{config.prompts}: prompt {number} has {length} tokens, the context leaves {room} before --max-tokens {config.max_tokens}"
        if not config.skip_bad:
            raise BadInput(f"{reason}; lower --max-tokens, or leave such prompts out with --skip-bad")
        skipped.reasons.append(reason)
    answers = generate(
        model, render, kept, max_tokens=config.max_tokens, seed=config.seed, temperature=config.temperature, per_prompt=config.n
    )
    how = {"temperature": config.temperature, "max_tokens": config.max_tokens, "seed": config.seed}
    count = write_records(
        config.out,
        (
            Completion(
                prompt=answer.prompt.text,
                completion=answer.text,
                model=str(config.model),
                finish="stop" if answer.finished else "length",
                sampling=how,
                **({"messages": [m.model_dump() for m in answer.prompt.messages]} if answer.prompt.messages else {}),
            )
            for answer in answers
        ),
    )
    console.print(
        f"{count} completions of {len(kept)} prompts: {config.out}" + (f"; left out: {len(skipped.reasons)}" if skipped.reasons else "")
    )
    return config.out


def score_completions(config: ScoreConfig) -> Path:
    """Write the same records with a `score`. A completion cut off is scored at its last token. Returns the file."""
    reward = load_reward_model(config.reward, pick_device(config.device))
    skipped = Skipped()
    records = read_records(Record, config.data, skipped if config.skip_bad else None)
    context = context_length(reward.model)
    examples = []
    kept = []
    for number, record in enumerate(records, 1):
        row = record.row()
        if not {"completion"} <= row.keys() or not {"prompt", "messages"} & row.keys():
            raise BadInput(f"{config.data}: record {number}: expected 'prompt' (or 'messages') and 'completion', found {', '.join(row)}")
        asked = Demonstration.model_validate(row if "messages" not in row else {k: v for k, v in row.items() if k != "prompt"})
        example = reward.render.example(asked, str(row["completion"]), finished=row.get("finish", "stop") == "stop")
        if len(example) > context:
            reason = f"{config.data}: record {number} has {len(example)} tokens, the reward model's context is {context}"
            if not config.skip_bad:
                raise BadInput(f"{reason}; leave such records out with --skip-bad")
            skipped.reasons.append(reason)
            continue
        examples.append(example)
        kept.append(row)
    scores = reward.score(examples).tolist() if examples else []
    write_records(config.out, (Record.model_validate(row | {"score": score}) for row, score in zip(kept, scores, strict=True)))
    console.print(f"{len(scores)} scores: {config.out}" + (f"; left out: {len(skipped.reasons)}" if skipped.reasons else ""))
    return config.out
