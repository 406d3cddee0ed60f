"""The commands `sample` (completions of a file of prompts) and `score` (a reward model's scores of completions)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from instructgpt.errors import InputError
from instructgpt.io import check_output_file
from instructgpt.models.policy import context_length, load_policy, pick_device
from instructgpt.models.reward_model import center_scores, load_reward_model
from instructgpt.records import (
    Completion,
    Demonstration,
    Prompt,
    PromptFields,
    SkippedLines,
    read_all_records,
    read_records,
    write_records,
)
from instructgpt.run.directory import console
from instructgpt.sampling.completions import SampledCompletion, generate
from instructgpt.sampling.configs import SampleConfig, ScoreConfig


class ScoredInput(Demonstration):
    """A completion to score: a model's, or a labeler's."""

    finish: Literal["stop", "length"] = "stop"


def sample_completions(config: SampleConfig) -> Path:
    """Write `n` completions of each prompt to the output file, and return it.

    Raises:
        InputError: a prompt leaves no room for a completion (without `skip_bad`), or no prompt is left.
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
            room = f"the context leaves {max_prompt_tokens} before --max-tokens {config.max_tokens}"
            prompt_length = f"prompt '{_preview(prompt)}' has {prompt_tokens} tokens"
            _skip_too_long(f"{config.prompts}: {prompt_length}, {room}", skipped)
    _require_nonempty(config.prompts, accepted_prompts, skipped)
    completions = generate(
        model,
        tokenizer,
        accepted_prompts,
        max_tokens=config.max_tokens,
        seed=config.seed,
        temperature=config.temperature,
        top_p=config.top_p,
        per_prompt=config.n,
    )
    count = write_records(config.out, (_to_completion_record(completion, config) for completion in completions))
    _report_written(f"{count} completions of {len(accepted_prompts)} prompts", config.out, skipped)
    return config.out


def _to_completion_record(completion: SampledCompletion, config: SampleConfig) -> Completion:
    sampling = {"temperature": config.temperature, "max_tokens": config.max_tokens, "seed": config.seed}
    columns = {
        "completion": completion.text,
        "model": config.model,
        "finish": "stop" if completion.finished else "length",
        "sampling": sampling | ({"top_p": config.top_p} if config.top_p < 1 else {}),
    }
    return Completion.model_validate(completion.prompt.to_dict() | columns)  # the prompt's own columns stay


def score_completions(config: ScoreConfig) -> Path:
    """Write the records with a `score` each, and return the file. A completion cut off is scored at its last token.

    Raises:
        InputError: a record does not fit the reward model's context (without `skip_bad`), or no record is left.
    """
    check_output_file(config.out)
    skipped = SkippedLines(config.skip_bad)
    records = read_records(ScoredInput, config.data, skipped)
    reward_model = load_reward_model(config.reward, pick_device(config.device))
    demonstrations = read_all_records(Demonstration, config.demonstrations, skipped)
    if message := center_scores(reward_model, str(config.reward), demonstrations):
        console.print(message, markup=False, soft_wrap=True)
    max_length = reward_model.context
    accepted_records, examples = [], []
    for record in records:
        finished = record.finish == "stop"
        example = reward_model.tokenizer.encode_example(record, record.completion, finished=finished)
        if len(example) <= max_length:
            accepted_records.append(record)
            examples.append(example)
        else:
            length = f"the completion of '{_preview(record)}' makes {len(example)} tokens"
            _skip_too_long(f"{config.data}: {length}, the reward model's context is {max_length}", skipped)
    _require_nonempty(config.data, accepted_records, skipped)
    scores = reward_model.score(examples).tolist()
    scored = zip(accepted_records, scores, strict=True)
    write_records(config.out, (record.model_copy(update={"score": score}) for record, score in scored))
    _report_written(f"{len(scores)} scores", config.out, skipped)
    return config.out


def _report_written(summary: str, path: Path, skipped: SkippedLines) -> None:
    console.print(f"{summary}: {path}; left out: {len(skipped.reasons)}", markup=False, soft_wrap=True)


def _preview(prompt: PromptFields) -> str:
    text = " ".join(prompt.prompt.split())
    return text if len(text) <= 40 else text[:39] + "…"


def _skip_too_long(reason: str, skipped: SkippedLines) -> None:
    """Count a record that is too long, or raise InputError without `skip_bad`."""
    if not skipped.allowed:
        raise InputError(f"{reason}; shorten it, or leave such records out with --skip-bad")
    skipped.reasons.append(reason)


def _require_nonempty(path: Path, records: list[Prompt] | list[ScoredInput], skipped: SkippedLines) -> None:
    if not records:
        count, first = len(skipped.reasons), skipped.reasons[0]
        raise InputError(f"{path}: nothing is left, {count} records were left out; the first: {first}")
