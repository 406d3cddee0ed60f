"""Stage 2: the reward model, trained on K-wise rankings (section 3.5, equation 1, appendix C.2).

    instructgpt reward --base runs/sft --data rankings.jsonl --demonstrations demonstrations.jsonl --out runs/reward

All pairs of a prompt are one batch element. Afterwards the scores are shifted so that demonstrations average 0. Rankings
of held-out labelers never train; they only validate.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from instructgpt import functional
from instructgpt.config import StageConfig
from instructgpt.data.packing import Example, collate, rows_of_step, steps_an_epoch, token_budget
from instructgpt.data.rankings import Order, RankedPrompt, flat_orders, labeler_groups, ranked_prompts, token_groups, tokens_in
from instructgpt.data.splits import held_out
from instructgpt.data.tokenization import demonstration_examples
from instructgpt.distributed.comm import add_up, in_step, ranks_of, share, where_not_finite
from instructgpt.distributed.launch import PATIENCE, launch
from instructgpt.errors import BadInput, RunFailed
from instructgpt.models.lora import trained_part, with_adapters
from instructgpt.models.policy import context_length, parameters
from instructgpt.models.precision import compute_in_float32, need_less
from instructgpt.models.reward_model import ScalarModel, load_reward_model, new_reward_model, save_reward_model
from instructgpt.models.sharding import shard, whole
from instructgpt.records import Demonstration, Ranking, Skipped, read_all, write_text
from instructgpt.run.directory import Run
from instructgpt.run.lineage import by_name
from instructgpt.run.timing import PHASES
from instructgpt.train.optim import Best, adam, descend, device_of, load_state, state_of

VALIDATE_TIMES = 5
"""How often the reward model is validated in a run; the last time is the one that counts, unless the best is kept."""
CHOSEN_BY = ("validation/accuracy", "validation/accuracy_heldout")
"""What `--keep best` goes by; the second where no ranking of a training labeler validates."""


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
    keep: Literal["best", "last"] = Field("last", description="the step that is saved: the last, or the one that validates best")
    folds: int = Field(0, ge=0, description="also cross-validate over this many groups of labelers (appendix E.2: 5)")
    skip_bad: bool = Field(False, description="leave bad lines out and count them")
    processes: int = Field(1, ge=1, description="ranks on this machine that divide models and batches; torchrun starts its own")
    patience: float = Field(PATIENCE, gt=0, description="seconds after which a rank that does not answer is taken for dead")

    def inert(self) -> Iterator[str]:
        """One group of labelers cannot be held out from itself."""
        if self.folds == 1:
            yield "--folds 1 leaves nothing to train on; take at least 2"


def main(config: RewardConfig) -> Path:
    """Train, in as many processes as were asked for. Returns the directory."""
    launch(train, config, config.processes, config.patience)
    return config.out


def train(config: RewardConfig) -> None:
    """One rank's part of the stage, start to end."""
    files = by_name(data=config.data, validation=config.validation, demonstrations=config.demonstrations)
    run = Run.start(config, {"base": config.base} | files)
    if run.finished:
        return
    device = device_of(run)
    reward = new_model(config, device, config.seed)
    training, validation, shift_to_zero = load_data(config, reward, run)
    shard(reward.model, memory=config.memory)
    state = run.restore()
    fit(reward, training, validation, config, run, state)
    compute_in_float32(reward.model)  # the offset is that of the model as it will be loaded
    reward.offset = float(reward.score(shift_to_zero).mean())
    final = accuracies(reward, validation) | {"offset": reward.offset}
    run.say("  ".join(f"{name} {value:.3f}" for name, value in final.items() if "accuracy" in name or "baseline" in name))
    sizes = {"parameters": parameters(reward.model), "trained": parameters(trained_part(reward.model))}
    facts: dict[str, Any] = {"tokens": config.epochs * tokens_in(training), **sizes, "validation": final}
    if config.folds:
        facts["cross_validation"] = cross_validate(training, config, device, run)
    trained = replace(reward, model=whole(reward.model))
    run.finish(lambda folder: save(trained, shift_to_zero, folder, facts), **facts)


def new_model(config: RewardConfig, device: torch.device, seed: int) -> ScalarModel:
    """The reward model before its first step, as the options want it: with adapters, and with less memory."""
    reward = new_reward_model(config.base, device, seed)
    need_less(reward.model, config.memory)
    reward.model = with_adapters(reward.model, config.lora, seed)
    return reward


def fit(
    reward: ScalarModel,
    training: Sequence[RankedPrompt],
    validation: Sequence[RankedPrompt],
    config: RewardConfig,
    run: Run | None,
    state: Any,
) -> None:
    """The loop: each step is a batch of prompts, each prompt all its pairs. Without a run it only trains."""
    trained, optimizer = trained_part(reward.model), adam(reward.model, memory=config.memory)
    steps = steps_an_epoch(len(training), config.batch) * config.epochs
    if state:
        load_state(state, {"model": trained}, {"adam": optimizer})
    best = Best(trained, config.keep, state and state["best"])
    for step in range(state["step"] if state else 0, steps):
        rows = rows_of_step(step, len(training), config.batch, config.seed)
        loss, right = ranking_step(reward, [training[row] for row in rows])
        lr = config.lr * functional.cosine_decay(step, steps)
        norm = descend(optimizer, lr)
        if run is None:
            continue
        metrics = {"loss/train": loss, "accuracy/train": right, "lr": lr, "gradient_norm": norm}
        if (step + 1) % max(1, steps // VALIDATE_TIMES) == 0 or step + 1 == steps:
            metrics |= accuracies(reward, validation)
            best.judge(next(metrics[name] for name in CHOSEN_BY if name in metrics), step + 1)
        run.log(step + 1, steps, metrics, show=("loss/train", "accuracy/train", "validation/accuracy", "validation/accuracy_heldout"))
        run.checkpoint(step + 1, lambda: state_of({"model": trained}, {"adam": optimizer}, best=best.state()))
    best.put_back()
    if run is not None:
        run.facts["step"] = best.place
        if config.keep == "best":
            run.say(f"keeps step {best.place} of {steps}, chosen by accuracy on validation rankings")


def ranking_step(reward: ScalarModel, prompts: Sequence[RankedPrompt]) -> tuple[float, float]:
    """Accumulate the gradient of the mean ranking loss over a batch of prompts. Returns loss and share of pairs right.

    Raises:
        RunFailed: the loss is not finite.
    """
    device, ranks = reward.model.device, ranks_of(reward.model)
    own = torch.zeros(3, device=device)  # mean loss, right pairs, pairs
    mine = [prompts[number] for number in share([tokens_in([prompt]) for prompt in prompts], ranks)]
    for group in in_step(token_groups(mine, token_budget(device)), ranks):
        batch = collate([example for prompt in group for example in prompt.examples], device)
        with PHASES("forward", len(batch.tokens)):
            scores = reward.last(batch)
        completion, ranking, rank = flat_orders(group, device)
        # every prompt weighs the same, however many labelers ranked it
        weight = torch.tensor([1 / len(prompt.orders) for prompt in group for _ in prompt.orders], device=device)
        loss = (functional.ranking_losses(scores[completion], ranking, rank) * weight).sum() / len(prompts)
        with PHASES("backward", len(batch.tokens)):
            loss.backward()  # type: ignore[no-untyped-call]
        right = functional.pairs_right(scores.detach()[completion], ranking, rank)
        own += torch.stack([loss.detach(), right.sum(), torch.ones_like(right).sum()])
    mean_loss, right_pairs, pairs = add_up(own.clone(), ranks).tolist()
    if not mean_loss < float("inf"):
        where = where_not_finite(own, ranks)
        raise RunFailed(
            f"the ranking loss is {mean_loss}{where}: the learning rate is likely too high, or the weights it started from are damaged"
        )
    return mean_loss, right_pairs / pairs


@torch.no_grad()
def accuracies(reward: ScalarModel, prompts: Sequence[RankedPrompt]) -> dict[str, float]:
    """Pair accuracy by cohort and by source, beside what "the longer completion wins" reaches on the same pairs."""
    examples = [example for prompt in prompts for example in prompt.examples]
    with PHASES("validation", sum(map(len, examples))):
        scores = reward.score(examples)
    lengths = torch.tensor([float(len(example.completion)) for prompt in prompts for example in prompt.examples])
    completion, ranking, rank = flat_orders(prompts)
    cohort = [order.cohort for prompt in prompts for order in prompt.orders]
    source = [prompt.source for prompt in prompts for _ in prompt.orders]
    groups = {"": [one == "training" for one in cohort], "_heldout": [one == "heldout" for one in cohort]}
    if len(set(source)) > 1:
        groups |= {f"/{name}": [one == name for one in source] for name in sorted(set(source))}
    measured: dict[str, float] = {}
    for suffix, chosen in groups.items():
        rows = torch.tensor(chosen)[ranking]
        if rows.any():
            of_group, numbers = completion[rows], (ranking[rows], rank[rows])
            measured[f"validation/accuracy{suffix}"] = float(functional.pairs_right(scores[of_group], *numbers).mean())
            measured[f"validation/length_baseline{suffix}"] = float(functional.pairs_right(lengths[of_group], *numbers).mean())
            measured[f"validation/loss{suffix}"] = float(functional.ranking_losses(scores[of_group], *numbers).mean())
    return measured


def load_data(config: RewardConfig, reward: ScalarModel, run: Run) -> tuple[list[RankedPrompt], list[RankedPrompt], list[Example]]:
    """Training prompts, validation prompts, and the examples that will score 0 on average; says what was left out."""
    skipped = Skipped(config.skip_bad)
    demonstrations = read_all(Demonstration, config.demonstrations, skipped)
    rankings = read_all(Ranking, config.data, skipped)
    fresh = read_all(Ranking, config.validation, skipped) if config.validation else [r for r in rankings if held_out(r.prompt)]
    fresh_prompts = {ranking.prompt for ranking in fresh}
    others = [ranking for ranking in rankings if ranking.prompt not in fresh_prompts]
    known = [ranking for ranking in others if ranking.cohort != "heldout"]
    context = context_length(reward.model)
    training, left_out = ranked_prompts(known, reward.render, context)
    validation, left_out_too = ranked_prompts(fresh, reward.render, context)
    if not training or not validation:
        raise BadInput(
            f"{len(training)} prompts with a decided pair to train on, {len(validation)} to validate on; give more, or --validation"
        )
    run.facts["left_out"] = {name: left_out[name] + left_out_too[name] for name in left_out} | {
        "rankings of training prompts by held-out labelers": len(others) - len(known),
        "bad lines": len(skipped.reasons),
    }
    run.say(f"rankings of {len(training)} prompts, of {len(validation)} for validation; left out: {run.facts['left_out']}")
    if demonstrations:
        return training, validation, demonstration_examples(demonstrations, reward.render, context)[0]
    return training, validation, [example for prompt in training for example in best_ranked(prompt)]


def best_ranked(prompt: RankedPrompt) -> list[Example]:
    """The completions that the first labeler of a prompt put in front, one or several."""
    ranks = prompt.orders[0].ranks
    return [example for example, rank in zip(prompt.examples, ranks, strict=True) if rank == min(ranks)]


def cross_validate(prompts: Sequence[RankedPrompt], config: RewardConfig, device: torch.device, run: Run) -> list[dict[str, float]]:
    """Accuracy on labelers the model never saw, fold by fold (appendix E.2: 69.6 % held out, 72.4 % in the group).

    Labelers are put into groups of about equal data; each fold trains on all groups but one. Both accuracies are measured
    on the same prompts, which no fold trains on.

    Raises:
        BadInput: there are fewer labelers than folds, or a group of labelers ranked none of those prompts.
    """
    labelers = {order.labeler for prompt in prompts for order in prompt.orders}
    if len(labelers) < config.folds:
        raise BadInput(
            f"--folds {config.folds}: the rankings name only {len(labelers)} labelers; cross-validation needs at least one a group"
        )
    known, fresh = [prompt for i, prompt in enumerate(prompts) if i % 10], [prompt for i, prompt in enumerate(prompts) if i % 10 == 0]
    groups = labeler_groups(prompts, config.folds)
    if not all(ranked_by(fresh, lambda order: order.labeler in outside) for outside in groups):  # noqa: B023
        raise BadInput(f"--folds {config.folds}: too few rankings, a group of labelers ranked none of the {len(fresh)} prompts kept for it")
    results: list[dict[str, float]] = []
    for fold, outside in enumerate(groups):
        reward = new_model(config, device, config.seed + fold)
        shard(reward.model, memory=config.memory)
        fit(reward, ranked_by(known, lambda order: order.labeler not in outside), [], config, None, None)  # noqa: B023
        result = {
            "held_out": accuracies(reward, ranked_by(fresh, lambda order: order.labeler in outside))["validation/accuracy"],  # noqa: B023
            "in_group": accuracies(reward, ranked_by(fresh, lambda order: order.labeler not in outside))["validation/accuracy"],  # noqa: B023
        }
        run.say(f"fold {fold + 1}/{config.folds}: held-out labelers {result['held_out']:.3f}, in-group {result['in_group']:.3f}")
        results.append(result)
    return results


def ranked_by(prompts: Sequence[RankedPrompt], wanted: Callable[[Order], bool]) -> list[RankedPrompt]:
    """The prompts that some labelers ranked, with their orders alone."""
    return [kept for prompt in prompts if (kept := prompt.only(wanted))]


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
