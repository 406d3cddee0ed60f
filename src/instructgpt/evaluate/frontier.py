"""The frontier: truth, held-out labelers' opinion and the reward model's score of a policy over its KL divergence.

Policies are points, with the KL measured on their own samples; best of n is a curve from one set of samples of the
start, with the bound on its KL (Gao et al. 2022; Beirami et al. 2024). All see the same prompts, and gains are over the
start on the same prompts. `measure_frontier` writes one row a point.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from statistics import fmean, stdev

import torch

from instructgpt.evaluate.best_of_n_policy import score_answers
from instructgpt.evaluate.configs import BestOfNConfig
from instructgpt.evaluate.inference import EvaluatedModel
from instructgpt.evaluate.metrics import preference
from instructgpt.evaluate.sampled_answers import (
    START,
    DistinctAnswers,
    build_answer,
    index_distinct,
    sample_blocks,
    sample_policy,
    split_by_prompt,
)
from instructgpt.functional import best_of_n_kl_bound, best_of_n_weights, sort_with_tie_means
from instructgpt.models.policy import pick_device
from instructgpt.models.reward_model import ScalarModel, load_reward_model
from instructgpt.records import Cohort, Completion, Prompt, Record, read_records, write_records
from instructgpt.results import ResultRow
from instructgpt.run.directory import console
from instructgpt.statistics.intervals import mean, paired_difference
from instructgpt.world import SimulatedLabelers, World

MEASURES = ("utility", "heldout", "score")
"""The truth; mean utility to held-out labelers, without noise; and the proxy, the reward model's score."""
_COHORTS: tuple[Cohort, ...] = ("training", "heldout")
_SPLITS = ("validation", "test")
_LABELERS = 3
"""Labelers of each cohort who rank a list of answers."""


@dataclass(frozen=True, slots=True)
class FrontierPolicy:
    """A saved policy along a method's run. FLOPs are those of training up to there, in all that the method needs."""

    method: str
    label: str
    folder: Path
    training_flops: float


@dataclass(slots=True)
class _Point:
    """What is known of one point on one split: values (prompts, answers) by measure, KL by prompt, answers to rank."""

    method: str
    label: str
    training_flops: float
    n: int | None = None
    answer_flops: float = 0.0
    values: dict[str, list[list[float]]] = field(default_factory=dict)
    kl: list[list[float]] = field(default_factory=list)
    answers: list[list[Completion]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class FrontierInputs:
    """What all points share."""

    config: BestOfNConfig
    world: World
    prompts: Mapping[str, Sequence[str]]  # by split
    device: torch.device

    def judge(self) -> Callable[[Completion], tuple[float, float]]:
        """Return a function that gives truth and held-out labelers' mean opinion of an answer, equal answers once."""
        people = SimulatedLabelers(self.world, "heldout").labelers
        cache: dict[tuple[str, str, str], tuple[float, float]] = {}

        def judge_answer(answer: Completion) -> tuple[float, float]:
            key = (answer.prompt, answer.completion, answer.finish)
            if key not in cache:
                judgment = self.world.judge(*key)
                opinion = fmean(person.perceived_utility(judgment) for person in people)
                cache[key] = judgment.utility, opinion
            return cache[key]

        return judge_answer


class SampledPrompt(DistinctAnswers):
    """Samples of the start for one prompt: distinct answers with scores, and which of them each sample is."""

    scores: list[float]
    samples: list[int]
    tokens: int

    def answer(self, sample: int, label: str) -> Completion:
        """Return a sample as an answer of the model `label`."""
        index = self.samples[sample]
        return build_answer(self.prompt, self.completions[index], self.finishes[index], label)


def sample_start(config: BestOfNConfig, world_seed: int) -> dict[str, Path]:
    """Sample and score the start's answers to the prompts of each split, unless their file exists. Return the files."""
    files = {split: config.out / f"{split}.jsonl" for split in _SPLITS}
    if all(file.exists() for file in files.values()):
        return files
    device = pick_device(config.device)
    model, reward = EvaluatedModel.load(START, config.policy, device), load_reward_model(config.reward, device)
    for split, prompts in frontier_prompts(config, World(world_seed)).items():
        if not files[split].exists():
            write_records(files[split], _sample_prompts(model, reward, prompts, config))
    return files


def frontier_prompts(config: BestOfNConfig, world: World) -> dict[str, list[str]]:
    """Return the prompts of each split."""
    counts = {"validation": config.validation_prompts, "test": config.prompts}
    return {split: [prompt.prompt for prompt in world.prompts(split, counts[split])] for split in _SPLITS}


def _sample_prompts(
    model: EvaluatedModel, reward: ScalarModel, prompts: Sequence[str], config: BestOfNConfig
) -> Iterator[SampledPrompt]:
    for block, answers in sample_blocks(model, prompts, config):
        scores = score_answers(reward, answers)
        parts = (split_by_prompt(values, config.samples) for values in (answers, scores))
        for prompt, prompt_answers, prompt_scores in zip(block, *parts, strict=True):
            yield _collect_samples(model, prompt, prompt_answers, prompt_scores)


def _collect_samples(
    model: EvaluatedModel, prompt: str, answers: Sequence[Completion], scores: Sequence[float]
) -> SampledPrompt:
    distinct, samples = index_distinct(answers)
    by_index = dict(zip(samples, scores, strict=True))
    encode, record = model.tokenizer.encode_example, Prompt(prompt=prompt)
    lengths = [len(encode(record, text, finished=finish == "stop")) for text, finish in distinct]
    return SampledPrompt(
        prompt=prompt,
        completions=[text for text, _ in distinct],
        finishes=[finish for _, finish in distinct],
        scores=[by_index[index] for index in range(len(distinct))],
        samples=samples,
        tokens=sum(lengths[index] for index in samples),
    )


def measure_frontier(
    config: BestOfNConfig, world: World, policies: Sequence[FrontierPolicy], reward_flops: float, out: Path
) -> list[Record]:
    """Measure every policy and best of every power of two, and write a row a point.

    Args:
        config: prompts, samples and numbers, with the start and the reward model.
        policies: in the order of each method's run.
        reward_flops: what training the reward model took, which is all that best of n trains.
    """
    device = pick_device(config.device)
    inputs = FrontierInputs(config, world, frontier_prompts(config, world), device)
    samples = {split: read_records(SampledPrompt, file) for split, file in sample_start(config, world.seed).items()}
    reward = load_reward_model(config.reward, device)
    points = {split: _measure_points(inputs, reward, policies, split) for split in _SPLITS}
    start_model = EvaluatedModel.load(START, config.policy, device)
    parameters = [sum(p.numel() for p in model.parameters()) for model in (start_model.lm, reward.model)]
    wins: dict[str, dict[tuple[str, str], ResultRow]] = {}
    for split in _SPLITS:
        values = list(_sample_values(inputs, samples[split]))
        points[split] += _best_of_n_points(inputs, samples[split], values, reward_flops, parameters)
        wins[split] = _measure_wins(inputs, points[split])
        start = _start_means(values)  # that of the last split, the test prompts
    rows = [_make_row(point, start, wins) for point in points["test"]]
    write_records(out, rows)
    console.print(f"[bold]frontier[/] {len(rows)} points: {out}", soft_wrap=True)
    return rows


# --- points --------------------------------------------------------------------------------------------------------


def _measure_points(
    inputs: FrontierInputs, reward: ScalarModel, policies: Sequence[FrontierPolicy], split: str
) -> list[_Point]:
    """Sample every policy, the start first, and measure its answers."""
    config, judge = inputs.config, inputs.judge()
    start = EvaluatedModel.load(START, config.policy, inputs.device)
    points = []
    for policy in (FrontierPolicy(START, START, Path(config.policy), 0.0), *policies):
        model = EvaluatedModel.load(policy.label, policy.folder, inputs.device)
        answers, examples, kl = sample_policy(model, start.lm, inputs.prompts[split], config)
        truths, opinions = zip(*map(judge, answers), strict=True)
        values = {"utility": truths, "heldout": opinions, "score": score_answers(reward, answers)}
        rows = partial(split_by_prompt, size=config.answers)
        point = _Point(policy.method, policy.label, policy.training_flops)
        point.values = {name: rows(list(value)) for name, value in values.items()}
        point.kl = rows(kl)
        point.answers = rows(answers)
        parameters = sum(p.numel() for p in model.lm.parameters())
        point.answer_flops = 2.0 * parameters * fmean(map(len, examples))
        points.append(point)
    return points


def _sample_values(inputs: FrontierInputs, samples: Sequence[SampledPrompt]) -> Iterator[dict[str, torch.Tensor]]:
    """Yield, for each prompt, every measure of every sample, (N,)."""
    judge = inputs.judge()
    for prompt in samples:
        index = torch.tensor(prompt.samples)
        judged = map(judge, prompt.answers(START))
        table = torch.tensor([[*pair, score] for pair, score in zip(judged, prompt.scores, strict=True)]).double()
        yield dict(zip(MEASURES, table[index].T, strict=True))


def _best_of_n_points(
    inputs: FrontierInputs,
    samples: Sequence[SampledPrompt],
    sample_values: Sequence[Mapping[str, torch.Tensor]],
    reward_flops: float,
    parameters: Sequence[int],
) -> list[_Point]:
    """Return best of 1, 2, 4 … as points: unbiased estimates from all samples, and answers chosen from random subsets.

    Args:
        sample_values: every measure of every sample, by prompt.
        parameters: of the policy and of the reward model.
    """
    config = inputs.config
    sorted_values = [
        {name: sort_with_tie_means(values["score"], values[name]) for name in MEASURES} for values in sample_values
    ]
    tokens = fmean(prompt.tokens / len(prompt.samples) for prompt in samples)
    points = []
    for n in (2**power for power in range(1, config.samples.bit_length()) if 2**power <= config.samples):
        weights, point = best_of_n_weights(config.samples, n), _Point("best_of_n", f"best of {n}", reward_flops, n)
        point.values = {name: [[float(weights @ values[name])] for values in sorted_values] for name in MEASURES}
        point.kl = [[best_of_n_kl_bound(n)] for _ in samples]
        point.answers = [_choose_answers(prompt, n, config.answers, point.label) for prompt in samples]
        point.answer_flops = 2.0 * n * tokens * sum(parameters)
        points.append(point)
    return points


def _choose_answers(prompt: SampledPrompt, n: int, count: int, label: str) -> list[Completion]:
    """Return answers that are each the best of a random subset of n samples; large subsets overlap."""
    rng = Random(f"{prompt.prompt} {n}")
    subsets = [rng.sample(range(len(prompt.samples)), n) for _ in range(count)]
    best = [max(subset, key=lambda sample: prompt.scores[prompt.samples[sample]]) for subset in subsets]
    return [prompt.answer(sample, label) for sample in best]


def _start_means(sample_values: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, tuple[list[float], float]]:
    """Return, for each measure, the start's mean at each prompt and its standard deviation over all samples."""
    tables: dict[str, list[torch.Tensor]] = defaultdict(list)
    for values in sample_values:
        for name in MEASURES:
            tables[name].append(values[name])
    return {
        name: ([float(table.mean()) for table in parts], stdev(torch.cat(parts).tolist()))
        for name, parts in tables.items()
    }


# --- rows ----------------------------------------------------------------------------------------------------------


def _measure_wins(inputs: FrontierInputs, points: Sequence[_Point]) -> dict[tuple[str, str], ResultRow]:
    """Have both cohorts rank all points' answers beside the start's. Return win rates by (label, cohort)."""
    lists = [
        [point.answers[prompt][answer] for point in points]
        for prompt in range(len(points[0].answers))
        for answer in range(inputs.config.answers)
    ]
    rows: dict[tuple[str, str], ResultRow] = {}
    for cohort in _COHORTS:
        seed = inputs.config.seed + 1
        labelers = SimulatedLabelers(inputs.world, cohort, per_prompt=_LABELERS, seed=seed)
        for row in preference.measure(labelers.rank(lists), baseline=START):
            if row.metric == f"win_rate_vs_{START}" and row.condition == cohort:
                rows[row.model, cohort] = row
    return rows


def _make_row(
    point: _Point,
    start: Mapping[str, tuple[Sequence[float], float]],
    wins: Mapping[str, Mapping[tuple[str, str], ResultRow]],
) -> Record:
    """Return one point: KL, each measure with its gain over the start on the same prompts, win rates, and costs."""
    prompts = [index for index, values in enumerate(point.kl) for _ in values]
    kl = mean([value for values in point.kl for value in values], prompts)
    row: dict[str, object] = {"method": point.method, "label": point.label, "n": point.n}
    row |= {"kl": kl.value, "kl_low": kl.low, "kl_high": kl.high, "kl_is_bound": point.n is not None}
    row["sqrt_kl"] = math.sqrt(max(0.0, kl.value or 0.0))
    for name in MEASURES:
        start_means, deviation = start[name]
        values = [value for per_prompt in point.values[name] for value in per_prompt]
        rows = [index for index, per_prompt in enumerate(point.values[name]) for _ in per_prompt]
        gain = paired_difference(values, [start_means[index] for index in rows], rows)
        row |= {name: fmean(values), f"{name}_gain": gain.value, f"{name}_low": gain.low, f"{name}_high": gain.high}
        row[f"{name}_start_sd"] = deviation
    for split, cohort in (("validation", "training"), ("test", "training"), ("test", "heldout")):
        name, won = f"win_rate_{split}_{cohort}", wins[split].get((point.label, cohort))
        row |= {name: won and won.value, f"{name}_low": won and won.low, f"{name}_high": won and won.high}
    row |= {"training_flops": point.training_flops, "answer_flops": point.answer_flops}
    return Record.model_validate(row)
