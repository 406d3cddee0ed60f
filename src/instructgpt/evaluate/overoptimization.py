"""Over-optimization of a reward model: its score and the truth of best of n, or of the policies along PPO's run.

Gao, Schulman and Hilton (2022) in the small world. The start of PPO is sampled once, and every reward model scores the
same samples. `measure` returns one record a reward model and method, from which `scaling-laws` fits its curves:

    truth, proxy    the utility and the reward model's score, over the start's mean on the same prompts, in standard
                    deviations of the start's samples; a number for each group of prompts
    kl              nats from the start: measured on a policy's samples; for best of n the bound log n - (n - 1)/n,
                    beside the estimate from the samples, which repeat
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from instructgpt.evaluate.best_of_n_policy import score_answers
from instructgpt.evaluate.configs import BestOfNConfig, StartSamplesConfig
from instructgpt.evaluate.frontier import FrontierPolicy, SampledPrompt
from instructgpt.evaluate.inference import EvaluatedModel
from instructgpt.evaluate.sampled_answers import (
    START,
    DistinctAnswers,
    index_distinct,
    sample_blocks,
    sample_policy,
    split_by_prompt,
)
from instructgpt.functional import best_of_n_kl, best_of_n_kl_bound, best_of_n_weights, sort_with_tie_means
from instructgpt.models.policy import pick_device
from instructgpt.models.reward_model import ScalarModel, load_reward_model
from instructgpt.records import read_records, write_records
from instructgpt.world import World

PROMPT_GROUPS = 10
"""Groups of prompts that a measurement is kept for, the clusters of its interval."""


class StartSamples(DistinctAnswers):
    """Samples of the start for one prompt: distinct answers with their utility, and which of them each sample is."""

    utilities: list[float]
    samples: list[int]


def sample_start_answers(config: StartSamplesConfig, world: World, out: Path) -> None:
    """Sample the start's answers to test prompts, judge them, and write a line a prompt, unless the file is there."""
    if out.exists():
        return
    model = EvaluatedModel.load(START, config.policy, pick_device(config.device))
    prompts = [prompt.prompt for prompt in world.prompts("test", config.prompts)]
    write_records(out, _judge_samples(model, world, prompts, config))


def _judge_samples(
    model: EvaluatedModel, world: World, prompts: Sequence[str], config: StartSamplesConfig
) -> Iterator[StartSamples]:
    for block, answers in sample_blocks(model, prompts, config):
        for prompt, prompt_answers in zip(block, split_by_prompt(answers, config.samples), strict=True):
            distinct, samples = index_distinct(prompt_answers)
            yield StartSamples(
                prompt=prompt,
                completions=[text for text, _ in distinct],
                finishes=[finish for _, finish in distinct],
                utilities=[world.utility(prompt, *pair) for pair in distinct],
                samples=samples,
            )


@dataclass(frozen=True, slots=True)
class StartScores:
    """Utility and score of every sample of the start, (prompts, samples) each."""

    utility: Tensor
    score: Tensor

    @classmethod
    def from_distinct(cls, rows: Iterable[tuple[Sequence[int], Sequence[float], Sequence[float]]]) -> StartScores:
        """Build them from each prompt's samples, as indices of distinct answers with these utilities and scores."""
        tables = [
            torch.tensor([utilities, scores], dtype=torch.float64)[:, samples] for samples, utilities, scores in rows
        ]
        return cls(*torch.stack(tables, 1))

    @property
    def deviations(self) -> tuple[float, float]:
        """Standard deviation of utility and of score, over all samples."""
        return float(self.utility.std()), float(self.score.std())

    def truth_accuracy(self) -> float:
        """Return how often the score orders two samples of a prompt as the truth does; equal scores count half."""
        half = self.utility.shape[1] // 2
        truth, score = (values[:, :half] - values[:, half : 2 * half] for values in (self.utility, self.score))
        decided = truth != 0
        return float(((truth[decided].sign() * score[decided].sign()) + 1).mean() / 2)


def score_start(reward: ScalarModel, prompts: Sequence[StartSamples]) -> StartScores:
    """Score the start's samples, equal ones once."""
    return StartScores.from_distinct(
        (sampled.samples, sampled.utilities, score_answers(reward, sampled.answers(START))) for sampled in prompts
    )


def measure(
    config: StartSamplesConfig,
    samples_file: Path,
    reward_folder: Path,
    world: World,
    policies: Sequence[FrontierPolicy] = (),
) -> dict[str, Any]:
    """Measure best of n by a reward model, or where there are any the policies along a run of PPO against it."""
    device = pick_device(config.device)
    reward = load_reward_model(reward_folder, device)
    samples = read_records(StartSamples, samples_file)
    start = score_start(reward, samples)
    start_model = EvaluatedModel.load(START, config.policy, device)
    if policies:
        prompts = [sampled.prompt for sampled in samples]
        points = [measure_policy(config, policy, start_model, reward, world, prompts, start) for policy in policies]
    else:
        points = list(best_of_n_points(start))
    return _describe(start_model, reward, start) | {"points": points}


def measure_scored_samples(config: BestOfNConfig, world: World) -> dict[str, Any]:
    """Return the same for best of n from the test prompts that `run --baselines` has sampled and scored."""
    device = pick_device(config.device)
    start = StartScores.from_distinct(
        (
            sampled.samples,
            [world.utility(answer.prompt, answer.completion, answer.finish) for answer in sampled.answers(START)],
            sampled.scores,
        )
        for sampled in read_records(SampledPrompt, config.out / "test.jsonl")
    )
    models = EvaluatedModel.load(START, config.policy, device), load_reward_model(config.reward, device)
    return _describe(*models, start) | {"points": list(best_of_n_points(start))}


def _describe(start_model: EvaluatedModel, reward: ScalarModel, start: StartScores) -> dict[str, Any]:
    """Return sizes of both models, and what the reward model makes of the start's samples."""
    embeddings = reward.model.get_input_embeddings().weight.numel()
    parameters = sum(p.numel() for p in reward.model.parameters())
    return {
        "policy_parameters": sum(p.numel() for p in start_model.lm.parameters()),
        "reward_parameters": parameters,
        "reward_parameters_without_embeddings": parameters - embeddings,
        "truth_accuracy": start.truth_accuracy(),
        "truth_deviation": start.deviations[0],
        "proxy_deviation": start.deviations[1],
        "prompts": start.utility.shape[0],
        "samples": start.utility.shape[1],
    }


def best_of_n_points(start: StartScores) -> Iterator[dict[str, Any]]:
    """Yield best of 2, 4, 8 … samples by score: unbiased estimates from all samples of each prompt."""
    count = start.utility.shape[1]
    pairs = list(zip(start.score, start.utility, strict=True))
    truths = torch.stack([sort_with_tie_means(score, utility) for score, utility in pairs])
    scores = start.score.sort(dim=1).values
    for n in (2**power for power in range(1, count.bit_length()) if 2**power <= count):
        weights = best_of_n_weights(count, n)
        estimate = fmean(float(best_of_n_kl(row, n)) for row in start.score)
        kl = {"kl": best_of_n_kl_bound(n), "kl_estimate": round(estimate, 5)}
        yield {"n": n} | kl | to_gains(truths @ weights, scores @ weights, start)


def measure_policy(
    config: StartSamplesConfig,
    policy: FrontierPolicy,
    start_model: EvaluatedModel,
    reward: ScalarModel,
    world: World,
    prompts: Sequence[str],
    start: StartScores,
) -> dict[str, Any]:
    """Sample a saved policy on the start's prompts. Return its KL, truth and proxy."""
    model = EvaluatedModel.load(policy.label, policy.folder, start_model.lm.device)
    answers, _, kl = sample_policy(model, start_model.lm, prompts, config)
    scores = torch.tensor(score_answers(reward, answers), dtype=torch.float64)
    utilities = torch.tensor(
        [world.utility(answer.prompt, answer.completion, answer.finish) for answer in answers],
        dtype=torch.float64,
    )
    shape = (len(prompts), config.answers)
    gains = to_gains(utilities.view(shape).mean(1), scores.view(shape).mean(1), start)
    return {"policy": policy.label, "kl": max(0.0, fmean(kl))} | gains


def to_gains(utility: Tensor, score: Tensor, start: StartScores) -> dict[str, list[float]]:
    """Return gains over the start in its standard deviations, for each group of prompts: (prompts,), (prompts,)."""
    values = {"truth": (utility, start.utility), "proxy": (score, start.score)}
    groups = torch.arange(len(utility)) % PROMPT_GROUPS
    gains: dict[str, list[float]] = {}
    for name, (means, table) in values.items():
        gain = (means - table.mean(1)) / table.std()
        gains[name] = [round(float(gain[groups == group].mean()), 5) for group in range(PROMPT_GROUPS)]
    return gains
