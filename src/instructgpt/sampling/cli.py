"""The commands `sample` (completions of a file of prompts) and `score` (a reward model's scores of completions)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from instructgpt.errors import InputError
from instructgpt.io import check_output_file
from instructgpt.models.execution import describe_model, enable_cuda_graphs
from instructgpt.models.policy import context_length, load_policy, pick_device
from instructgpt.models.precision import compute_device
from instructgpt.models.reward_model import center_scores, load_reward_model
from instructgpt.records import (
    Completion,
    Demonstration,
    Prompt,
    PromptFields,
    SkippedLines,
    read_all_records,
    read_records,
)
from instructgpt.run.directory import console
from instructgpt.run.lineage import content_hash
from instructgpt.run.progress import show_progress
from instructgpt.run.resumable_file import hash_records, open_resumable_file
from instructgpt.sampling.completions import SampledCompletion, generate
from instructgpt.sampling.configs import SampleConfig, ScoreConfig
from instructgpt.sampling.engine import cache_bytes_per_token, max_batch_rows

_MAX_BLOCK_ROWS = {"cpu": 256}
_DEFAULT_BLOCK_ROWS = 4096
_BLOCK_SLOTS = 4
"""Records between two writes at most, by device: what a killed command loses. Large blocks keep a GPU busy."""


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
    enable_cuda_graphs(config.cuda_graphs)
    model, tokenizer = load_policy(config.model, pick_device(config.device))
    _print_lines(describe_model(model))
    prompts = read_records(Prompt, config.prompts, skipped, tokenizer.check_prompt)
    console.print(tokenizer.describe(), markup=False, soft_wrap=True)
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
    total = len(accepted_prompts) * config.n
    made_from = _describe_options(config) | {
        "content of --model": content_hash(Path(config.model)),
        "content of --prompts": hash_records(accepted_prompts),
        "random numbers": "a stream a completion",
    }
    width = max_prompt_tokens + config.max_tokens
    with (
        open_resumable_file(config.out, made_from, _block_rows(model, width), resume=config.resume) as file,
        show_progress("sample", total, file.count) as advance,
    ):
        while file.count < total:
            rows = range(file.count, min(total, file.count + file.block))
            completions = generate(
                model,
                tokenizer,
                [accepted_prompts[row // config.n] for row in rows],
                **config.sampling_arguments(),
                seed=config.seed,
                keys=[divmod(row, config.n) for row in rows],
            )
            file.append(_to_completion_record(completion, config) for completion in completions)
            advance(len(rows))
        file.finish()
    _report_written(f"{total} completions of {len(accepted_prompts)} prompts", config.out, skipped)
    return config.out


def _print_lines(lines: list[str]) -> None:
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _describe_options(config: SampleConfig | ScoreConfig) -> dict[str, Any]:
    """Return the options that records depend on."""
    return config.model_dump(mode="json", exclude={"out", "device", "resume", "skip_bad", "cuda_graphs"})


def _block_rows(model: Any, width: int) -> int:
    """Return how many completions are sampled between two writes: a few times what memory holds at once.

    Args:
        width: tokens of the longest row.
    """
    with torch.inference_mode():
        bytes_per_token = cache_bytes_per_token(model)
    slots = 1 if bytes_per_token is None else max_batch_rows(model, bytes_per_token * width)
    return min(_MAX_BLOCK_ROWS.get(compute_device(model).type, _DEFAULT_BLOCK_ROWS), _BLOCK_SLOTS * slots)


def _to_completion_record(completion: SampledCompletion, config: SampleConfig) -> Completion:
    columns = {
        "completion": completion.text,
        "model": config.model,
        "finish": completion.finish,
        "sampling": config.sampling_column(config.seed),
    }
    return Completion.model_validate(completion.prompt.to_dict() | columns)  # the prompt's own columns stay


def score_completions(config: ScoreConfig) -> Path:
    """Write the records with a `score` each, and return the file. A completion cut off is scored at its last token.

    Raises:
        InputError: a record does not fit the reward model's context (without `skip_bad`), or no record is left.
    """
    check_output_file(config.out)
    skipped = SkippedLines(config.skip_bad)
    groups = () if config.group is None else (config.group,)
    reward_model = load_reward_model(config.reward, pick_device(config.device), groups)
    _print_lines(describe_model(reward_model.model, sampled=False))
    records = read_records(ScoredInput, config.data, skipped, reward_model.tokenizer.check_prompt)
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
    made_from = _describe_options(config) | {
        "content of --reward": content_hash(Path(config.reward)),
        "content of --data": hash_records(accepted_records),
        "content of --demonstrations": hash_records(demonstrations),
    }
    block = _MAX_BLOCK_ROWS.get(compute_device(reward_model.model).type, _DEFAULT_BLOCK_ROWS)
    with (
        open_resumable_file(config.out, made_from, block, resume=config.resume) as file,
        show_progress("score", len(examples), file.count) as advance,
    ):
        while file.count < len(examples):
            rows = slice(file.count, file.count + file.block)
            scores = reward_model.score(examples[rows]).tolist()
            scored = zip(accepted_records[rows], scores, strict=True)
            file.append(record.model_copy(update={"score": score}) for record, score in scored)
            advance(len(scores))
        file.finish()
    _report_written(f"{len(examples)} scores", config.out, skipped)
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
