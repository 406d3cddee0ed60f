"""Stage 2: the reward model, trained on K-wise rankings (section 3.5, equation 1, appendix C.2).

    instructgpt reward --base runs/sft --data rankings.jsonl --demonstrations demonstrations.jsonl --out runs/reward

All pairs of a prompt are one batch element. Afterwards the scores are shifted so that demonstrations average 0. Rankings
of held-out labelers never train; they only validate.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from instructgpt import functional
from instructgpt.config import StageConfig
from instructgpt.data.batches import Example, collate, shuffled, token_budget
from instructgpt.data.render import Renderer, demonstration_examples
from instructgpt.data.split import held_out
from instructgpt.errors import BadInput, RunFailed
from instructgpt.models.load import context_length, parameters, pick_device
from instructgpt.models.scalar import ScalarModel, load_reward_model, new_reward_model, save_reward_model
from instructgpt.records import Demonstration, Ranking, Skipped, read_all, write_text
from instructgpt.run import Run
from instructgpt.train.loop import adam, add_over_processes, descend, launch, load_state, process, processes, state_of

VALIDATE_TIMES = 5
"""How often the reward model is validated in a run; the last time is the one that counts."""


class RewardConfig(StageConfig):
    """Training on rankings. Defaults are the paper's."""

    stage: ClassVar[str] = "reward"

    base: str = Field(description="where the trunk starts: an SFT model (any causal model)")
    data: tuple[Path, ...] = Field(description="rankings; those of held-out labelers only validate")
    validation: tuple[Path, ...] = Field((), description="rankings to validate on; without it a tenth of the prompts is held out")
    demonstrations: tuple[Path, ...] = Field(
        (), description="demonstrations that are shifted to score 0 on average; without it the best-ranked"
    )
    epochs: int = Field(1, ge=1, description="passes over the rankings; more than one overfits (section 3.5)")
    batch: int = Field(64, ge=1, description="prompts in one optimizer step")
    lr: float = Field(9e-6, gt=0, description="peak learning rate; cosine to a tenth")
    folds: int = Field(0, ge=0, description="also cross-validate over this many groups of labelers (appendix E.2: 5)")
    skip_bad: bool = Field(False, description="leave bad lines out and count them")
    processes: int = Field(1, ge=1, description="processes that divide each batch (CPU)")

    def inert(self) -> Iterator[str]:
        """One group of labelers cannot be held out from itself."""
        if self.folds == 1:
            yield "--folds 1 leaves nothing to train on; take at least 2"


@dataclass(frozen=True, slots=True)
class Task:
    """One ranking as tokens: K completions of a prompt and their ranks."""

    examples: list[Example]
    ranks: list[int]
    labeler: str | None
    cohort: str
    source: str

    def __len__(self) -> int:
        return sum(map(len, self.examples))


def main(config: RewardConfig) -> Path:
    """Train, in as many processes as were asked for. Returns the directory."""
    launch(train, config, config.processes)
    return config.out


def train(config: RewardConfig) -> None:
    """One process's part of the stage, start to end."""
    parents = {"base": config.base} | {f"data {path.name}": path for path in (*config.data, *config.demonstrations)}
    run = Run.start(config, parents, watched=process() == 0)
    if run.finished:
        return
    device = pick_device(config.device)
    reward = new_reward_model(config.base, device, config.seed)
    training, validation, shift_to_zero = load_data(config, reward, run)
    state = run.restore()
    fit(reward, training, validation, config, run, state)
    reward.offset = float(reward.score(shift_to_zero).mean())
    final = accuracies(reward, validation) | {"offset": reward.offset}
    run.say("  ".join(f"{name} {value:.3f}" for name, value in final.items() if "accuracy" in name or "baseline" in name))
    facts: dict[str, Any] = {"tokens": config.epochs * sum(map(len, training)), "parameters": parameters(reward.model), "validation": final}
    if config.folds:
        facts["cross_validation"] = cross_validate(training, config, device, run)
    run.finish(lambda folder: save(reward, shift_to_zero, folder, facts), **facts)


def fit(
    reward: ScalarModel, training: Sequence[Task], validation: Sequence[Task], config: RewardConfig, run: Run | None, state: Any
) -> None:
    """The loop: each step is a batch of prompts, each prompt all its pairs. Without a run it only trains."""
    optimizer = adam(reward.model)
    steps_an_epoch = -(-len(training) // config.batch)
    steps = steps_an_epoch * config.epochs
    if state:
        load_state(state, {"model": reward.model}, {"adam": optimizer})
    for step in range(state["step"] if state else 0, steps):
        epoch, place = divmod(step, steps_an_epoch)
        rows = shuffled(len(training), config.seed, epoch)[place * config.batch : (place + 1) * config.batch]
        loss, right = ranking_step(reward, [training[row] for row in rows])
        lr = config.lr * functional.cosine_decay(step, steps)
        norm = descend(optimizer, lr)
        if run is None:
            continue
        metrics = {"loss/train": loss, "accuracy/train": right, "lr": lr, "gradient_norm": norm}
        if (step + 1) % max(1, steps // VALIDATE_TIMES) == 0 or step + 1 == steps:
            metrics |= accuracies(reward, validation)
        run.log(step + 1, steps, metrics, show=("loss/train", "accuracy/train", "validation/accuracy", "validation/accuracy_heldout"))
        run.checkpoint(step + 1, lambda: state_of({"model": reward.model}, {"adam": optimizer}))


def ranking_step(reward: ScalarModel, tasks: Sequence[Task]) -> tuple[float, float]:
    """Accumulate the gradient of the mean ranking loss over a batch of prompts. Returns loss and share of pairs right.

    Raises:
        RunFailed: the loss is not finite.
    """
    device = reward.model.device
    mine = tasks[process() :: processes()]
    totals = torch.zeros(3, device=device)  # summed loss, right pairs, pairs
    for group in token_groups(mine, token_budget(device)):
        examples = [example for task in group for example in task.examples]
        prompt, rank = places(group, device)
        scores = reward.last(collate(examples, device))
        losses = functional.ranking_losses(scores, prompt, rank)
        (losses.sum() / len(tasks)).backward()  # type: ignore[no-untyped-call]
        right = functional.pairs_right(scores.detach(), prompt, rank)
        totals += torch.stack([losses.detach().sum() / len(tasks), right.sum(), torch.tensor(float(len(right)), device=device)])
    add_over_processes([totals])
    loss, right_pairs, pairs = totals.tolist()
    if not loss < float("inf"):
        raise RunFailed(f"the ranking loss is {loss}: the learning rate is likely too high, or the weights it started from are damaged")
    return loss, right_pairs / pairs


def token_groups(tasks: Sequence[Task], budget: int) -> Iterator[list[Task]]:
    """Whole tasks computed together, at most `budget` padded tokens (always at least one task)."""
    group: list[Task] = []
    rows, width = 0, 0
    for task in sorted(tasks, key=lambda task: max(map(len, task.examples))):
        wider = max(width, max(map(len, task.examples)))
        if group and (rows + len(task.examples)) * wider > budget:
            yield group
            group, rows, wider = [], 0, max(map(len, task.examples))
        group.append(task)
        rows, width = rows + len(task.examples), wider
    if group:
        yield group


def places(tasks: Sequence[Task], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Which task each completion belongs to, and its rank. -> (N,), (N,)."""
    prompt = torch.tensor([i for i, task in enumerate(tasks) for _ in task.ranks], device=device)
    rank = torch.tensor([rank for task in tasks for rank in task.ranks], device=device)
    return prompt, rank


@torch.no_grad()
def accuracies(reward: ScalarModel, tasks: Sequence[Task]) -> dict[str, float]:
    """Pair accuracy by cohort and by source, beside what "the longer completion wins" reaches on the same pairs."""
    scores = reward.score([example for task in tasks for example in task.examples])
    lengths = torch.tensor([float(len(example.completion)) for task in tasks for example in task.examples])
    measured: dict[str, float] = {}
    training = [task.cohort == "training" for task in tasks]
    groups = {"": training if any(training) else [True] * len(tasks), "_heldout": [not one for one in training]}
    sources = {task.source for task in tasks if task.source}
    if len(sources) > 1:
        groups |= {f"/{source}": [task.source == source for task in tasks] for source in sorted(sources)}
    for suffix, chosen in groups.items():
        of_group = [task for task, one in zip(tasks, chosen, strict=True) if one]
        if not of_group or (suffix == "_heldout" and not any(training)):
            continue
        rows = torch.tensor([one for task, one in zip(tasks, chosen, strict=True) for _ in task.ranks])
        prompt, rank = places(of_group)
        measured[f"validation/accuracy{suffix}"] = float(functional.pairs_right(scores[rows], prompt, rank).mean())
        measured[f"validation/length_baseline{suffix}"] = float(functional.pairs_right(lengths[rows], prompt, rank).mean())
        measured[f"validation/loss{suffix}"] = float(functional.ranking_losses(scores[rows], prompt, rank).mean())
    return measured


def load_data(config: RewardConfig, reward: ScalarModel, run: Run) -> tuple[list[Task], list[Task], list[Example]]:
    """Training tasks, validation tasks, and the examples that will score 0 on average; says what was left out."""
    skipped = Skipped()
    noted = skipped if config.skip_bad else None
    rankings = read_all(Ranking, config.data, noted)
    fresh = read_all(Ranking, config.validation, noted) if config.validation else [r for r in rankings if held_out(r.prompt)]
    held = {ranking.prompt for ranking in fresh} if config.validation else set()
    known = [r for r in rankings if r.cohort != "heldout" and (r.prompt not in held if config.validation else not held_out(r.prompt))]
    context = context_length(reward.model)
    training, left_out = tasks_of(known, reward.render, context)
    validation, left_out_too = tasks_of(fresh, reward.render, context)
    if not training or not validation:
        raise BadInput(
            f"{len(training)} rankings with a decided pair to train on, {len(validation)} to validate on; give more, or --validation"
        )
    run.facts["left_out"] = {name: left_out[name] + left_out_too[name] for name in left_out} | {"bad lines": len(skipped.reasons)}
    run.say(f"{len(training)} rankings, {len(validation)} for validation; left out: {run.facts['left_out']}")
    if config.demonstrations:
        records = read_all(Demonstration, config.demonstrations, noted)
        return training, validation, demonstration_examples(records, reward.render, context)[0]
    best = [example for task in training for example, rank in zip(task.examples, task.ranks, strict=True) if rank == 1]
    return training, validation, best


def tasks_of(rankings: Sequence[Ranking], render: Renderer, context: int) -> tuple[list[Task], dict[str, int]]:
    """Rankings as tokens; how many were left out because all their completions tie, or because one does not fit the context.

    A single completion that does not fit is left out of its ranking, the others stay.
    """
    tasks: list[Task] = []
    left_out = {"rankings without a decided pair": 0, "completions longer than the context": 0}
    for ranking in rankings:
        prompt = render.prompt(ranking.prompt)
        examples = [Example(prompt, render.completion(completion)) for completion in ranking.completions]
        fits = [len(example) <= context for example in examples]
        left_out["completions longer than the context"] += fits.count(False)
        ranks = [rank for rank, fit in zip(ranking.ranks, fits, strict=True) if fit]
        if len(set(ranks)) < 2:
            left_out["rankings without a decided pair"] += 1
            continue
        kept = [example for example, fit in zip(examples, fits, strict=True) if fit]
        tasks.append(Task(kept, ranks, ranking.labeler, ranking.cohort or "training", ranking.source or ""))
    return tasks, left_out


def cross_validate(tasks: Sequence[Task], config: RewardConfig, device: torch.device, run: Run) -> list[dict[str, float]]:
    """Accuracy on labelers the model never saw, fold by fold (appendix E.2: 69.6 % held out, 72.4 % in the group).

    Labelers are put into groups of about equal data; each fold trains on all groups but one. In-group accuracy is
    measured on prompts held out from training.

    Raises:
        BadInput: there are fewer labelers than folds.
    """
    groups = labeler_groups(tasks, config.folds)
    results: list[dict[str, float]] = []
    for fold, outside in enumerate(groups):
        inside = [task for task in tasks if task.labeler not in outside]
        fresh = [i for i in range(len(inside)) if i % 10 == 0]
        reward = new_reward_model(config.base, device, config.seed + fold)
        fit(reward, [task for i, task in enumerate(inside) if i % 10], [], config, None, None)
        result = {
            "held_out": accuracies(reward, [task for task in tasks if task.labeler in outside])["validation/accuracy"],
            "in_group": accuracies(reward, [inside[i] for i in fresh])["validation/accuracy"],
        }
        run.say(f"fold {fold + 1}/{config.folds}: held-out labelers {result['held_out']:.3f}, in-group {result['in_group']:.3f}")
        results.append(result)
    return results


def labeler_groups(tasks: Sequence[Task], folds: int) -> list[set[str | None]]:
    """Labelers in `folds` groups of about equally many rankings: the busiest first, each to the group with least.

    Raises:
        BadInput: there are fewer labelers than groups.
    """
    counts: dict[str | None, int] = {}
    for task in tasks:
        counts[task.labeler] = counts.get(task.labeler, 0) + 1
    if len(counts) < folds:
        raise BadInput(f"--folds {folds}: the rankings name only {len(counts)} labelers; cross-validation needs at least one a group")
    groups: list[set[str | None]] = [set() for _ in range(folds)]
    loads = [0] * folds
    for labeler in sorted(counts, key=lambda name: (-counts[name], str(name))):
        least = loads.index(min(loads))
        groups[least].add(labeler)
        loads[least] += counts[labeler]
    return groups


def save(reward: ScalarModel, shifted: Sequence[Example], folder: Path, facts: dict[str, Any]) -> None:
    """Write the model, and read it back: the saved scores must be the trained ones, offset and all.

    Raises:
        RunFailed: they are not.
    """
    save_reward_model(reward, folder)
    again = load_reward_model(folder, reward.model.device)
    few = list(shifted[:8])
    if not torch.allclose(again.score(few), reward.score(few), atol=1e-4):
        raise RunFailed(f"{folder}: the saved reward model scores differently from the trained one")
    if "cross_validation" in facts:
        write_text(folder / "cross_validation.json", json.dumps(facts["cross_validation"], indent=2))
