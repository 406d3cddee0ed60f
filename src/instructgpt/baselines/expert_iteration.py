"""`expert-iteration`: rejection sampling and fine-tuning in turns (Dong et al. 2023, Gulcehre et al. 2023).

    instructgpt expert-iteration --policy runs/start --reward runs/reward --prompts prompts.jsonl --out runs/expert

Each round samples N completions of new prompts from the policy so far, keeps the best of each prompt by score, and
fine-tunes on them. The rounds are the commands `sample`, `score`, `best` and `sft`, each with its own files in
`round-1`, `round-2` …; a killed run goes on where it stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from instructgpt.baselines import best_of_n
from instructgpt.baselines.configs import BestConfig, ExpertIterationConfig
from instructgpt.config import make_config
from instructgpt.data.splits import is_heldout
from instructgpt.errors import InputError
from instructgpt.records import Prompt, SkippedLines, read_all_records, read_records, write_records
from instructgpt.run.directory import RunDirectory, console, read_run_record
from instructgpt.run.lineage import named_inputs
from instructgpt.sampling.cli import sample_completions, score_completions
from instructgpt.sampling.configs import SampleConfig, ScoreConfig
from instructgpt.train import sft
from instructgpt.train.configs import SFTConfig


def main(config: ExpertIterationConfig) -> Path:
    """Run every unfinished round; the directory is a copy of the last round's policy. Return it.

    Raises:
        InputError: there are fewer prompts than rounds.
    """
    inputs = {"policy": config.policy, "reward": config.reward} | named_inputs(prompts=config.prompts)
    run = RunDirectory.open(config, inputs)
    if run.is_finished:
        return config.out
    skipped = SkippedLines(config.skip_bad)
    prompts = read_all_records(Prompt, config.prompts, skipped)
    if len(prompts) < config.rounds:
        raise InputError(f"{len(prompts)} prompts for --rounds {config.rounds}; every round needs new prompts")
    run.create()
    if skipped.reasons:
        run.info(f"left out: {len(skipped.reasons)} bad lines; the first: {escape(skipped.reasons[0])}")
    policy = config.policy
    for number in range(1, config.rounds + 1):
        # Interleaved, so that every round has prompts of all parts of the files.
        policy = str(run_iteration(config, number, policy, prompts[number - 1 :: config.rounds]))
    run.summary["left_out"] = {"bad lines": len(skipped.reasons), "longer than the context": _count_too_long(config)}
    run.finish(lambda folder: _copy_model(Path(policy), folder), tokens=_count_tokens(config))
    return config.out


def run_iteration(config: ExpertIterationConfig, number: int, policy: str, prompts: Sequence[Prompt]) -> Path:
    """Sample, score, choose and fine-tune; return the directory of the new policy."""
    folder = config.out / f"round-{number}"
    files = {name: folder / f"{name}.jsonl" for name in ("prompts", "completions", "scored", "best")}
    seed, device = config.seed + number, config.device
    if not files["best"].exists():
        folder.mkdir(exist_ok=True)
        write_records(files["prompts"], [Prompt.model_validate(prompt.prompt_columns()) for prompt in prompts])
        length = {"max_tokens": config.max_tokens, "temperature": config.temperature}
        sampling = {"model": policy, "prompts": files["prompts"], "n": config.n, "seed": seed, "device": device}
        sample_completions(
            make_config(SampleConfig, sampling, length, {"out": files["completions"], "skip_bad": config.skip_bad})
        )
        scoring = {"reward": config.reward, "data": files["completions"], "out": files["scored"], "device": device}
        score_completions(make_config(ScoreConfig, scoring))
        best_of_n.main(BestConfig(data=(files["scored"],), n=config.n, out=files["best"], skip_bad=False))
    training: dict[str, Any] = {
        "base": policy,
        "data": (files["best"],),
        "out": folder / "policy",
        "seed": seed,
        "device": device,
    }
    if len({is_heldout(prompt.prompt) for prompt in read_records(Prompt, files["best"])}) == 1:
        console.print(f"round {number}: too few prompts to hold some out; its validation loss is of its training data")
        training["validation"] = (files["best"],)
    # Residual dropout is the paper's for demonstrations; PPO and DPO have none.
    options = {"epochs": config.epochs, "batch": config.batch, "lr": config.lr, "keep": "last", "learn": "last"}
    return sft.main(make_config(SFTConfig, training, options, {"dropout": 0.0, "processes": config.processes}))


def _copy_model(policy: Path, folder: Path) -> None:
    """Copy the files of a model, without those of its run."""
    for file in policy.iterdir():
        if file.is_file() and file.name not in ("run.json", "README.md", "metrics.jsonl", "log.jsonl"):
            shutil.copy2(file, folder / file.name)


def _count_too_long(config: ExpertIterationConfig) -> int:
    """Return how many prompts of all rounds left no room for a completion, which `sample` has named."""
    counts = []
    for number in range(1, config.rounds + 1):
        folder = config.out / f"round-{number}"
        prompts, best = (len(read_records(Prompt, folder / f"{name}.jsonl")) for name in ("prompts", "best"))
        counts.append(prompts - best)
    return sum(counts)


def _count_tokens(config: ExpertIterationConfig) -> int:
    records = (read_run_record(config.out / f"round-{number}" / "policy") for number in range(1, config.rounds + 1))
    return sum(int(record["tokens"]) for record in records if record)
