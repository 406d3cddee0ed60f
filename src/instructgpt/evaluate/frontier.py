"""The frontier: what a judge says of a policy, and the reward model's score of it, over its KL divergence.

In the small world the judge knows the truth; on people's rankings it is a reward model of the other half.
Policies are points, with the KL measured on their own samples; best of n is a curve from one set of samples of the
start, with the bound on its KL (Gao et al. 2022; Beirami et al. 2024). All see the same prompts, and gains are over the
start on the same prompts. `measure_frontier` writes one row a point.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from statistics import fmean, stdev

import torch

from instructgpt.errors import InputError
from instructgpt.evaluate.best_of_n_policy import score_answers
from instructgpt.evaluate.configs import BestOfNConfig
from instructgpt.evaluate.frontier_judges import FrontierJudge
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
from instructgpt.records import Completion, Prompt, PromptFields, Record, read_records, write_records
from instructgpt.results import ResultRow
from instructgpt.run.directory import console
from instructgpt.statistics.intervals import mean, paired_difference
from instructgpt.world import World

_PROXY = "score"
"""The reward model's score, beside the judge's measures."""
_SPLITS = ("validation", "test")


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
    judge: FrontierJudge
    prompts: Mapping[str, Sequence[Prompt]]  # by split
    device: torch.device
    rankings: Path | None

    @property
    def measures(self) -> tuple[str, ...]:
        """The judge's measures and the proxy."""
        return (*self.judge.measures, _PROXY)


class SampledPrompt(DistinctAnswers):
    """Samples of the start for one prompt: distinct answers with scores, and which of them each sample is."""

    scores: list[float]
    samples: list[int]
    tokens: int

    def answer(self, sample: int, label: str) -> Completion:
        """Return a sample as an answer of the model `label`."""
        index = self.samples[sample]
        return build_answer(self, self.completions[index], self.finishes[index], label)


def sample_start(config: BestOfNConfig, prompts: Mapping[str, Sequence[Prompt]]) -> dict[str, Path]:
    """Sample and score the start's answers to the prompts of each split, unless their file exists. Return the files."""
    files = {split: config.out / f"{split}.jsonl" for split in _SPLITS}
    if all(file.exists() for file in files.values()):
        return files
    device = pick_device(config.device)
    model, reward = EvaluatedModel.load(START, config.policy, device), load_reward_model(config.reward, device)
    for split, split_prompts in prompts.items():
        if not files[split].exists():
            write_records(files[split], _sample_prompts(model, reward, split_prompts, config))
    return files


def frontier_prompts(config: BestOfNConfig, world: World) -> dict[str, list[Prompt]]:
    """Return the small world's prompts of each split."""
    counts = {"validation": config.validation_prompts, "test": config.prompts}
    return {
        split: [Prompt(prompt=prompt.prompt) for prompt in world.prompts(split, counts[split])] for split in _SPLITS
    }


def _sample_prompts(
    model: EvaluatedModel, reward: ScalarModel, prompts: Sequence[Prompt], config: BestOfNConfig
) -> Iterator[SampledPrompt]:
    for block, answers in sample_blocks(model, prompts, config):
        scores = score_answers(reward, answers)
        parts = (split_by_prompt(values, config.samples) for values in (answers, scores))
        for prompt, prompt_answers, prompt_scores in zip(block, *parts, strict=True):
            yield _collect_samples(model, prompt, prompt_answers, prompt_scores)


def _collect_samples(
    model: EvaluatedModel, prompt: PromptFields, answers: Sequence[Completion], scores: Sequence[float]
) -> SampledPrompt:
    distinct, samples = index_distinct(answers)
    by_index = dict(zip(samples, scores, strict=True))
    encode = model.tokenizer.encode_example
    lengths = [len(encode(prompt, text, finished=finish == "stop")) for text, finish in distinct]
    return SampledPrompt(
        **prompt.prompt_columns(),
        completions=[text for text, _ in distinct],
        finishes=[finish for _, finish in distinct],
        scores=[by_index[index] for index in range(len(distinct))],
        samples=samples,
        tokens=sum(lengths[index] for index in samples),
    )


def _read_samples(file: Path, prompts: Sequence[Prompt]) -> list[SampledPrompt]:
    """Return the start's samples.

    Raises:
        InputError: they are of other prompts.
    """
    samples = read_records(SampledPrompt, file)
    if [sample.bare_prompt for sample in samples] != [prompt.bare_prompt for prompt in prompts]:
        raise InputError(f"{file}: its samples are of other prompts than the frontier's; restart with --no-resume")
    return samples


def measure_frontier(
    config: BestOfNConfig,
    judge: FrontierJudge,
    prompts: Mapping[str, Sequence[Prompt]],
    policies: Sequence[FrontierPolicy],
    reward_flops: float,
    out: Path,
    rankings: Path | None = None,
) -> list[Record]:
    """Measure every policy and best of every power of two, and write a row a point.

    Args:
        config: samples and numbers, with the start and the reward model.
        prompts: of each split.
        policies: in the order of each method's run.
        reward_flops: what training the reward model took, which is all that best of n trains.
        rankings: folder for the judge's rankings of the points' answers, a file for each split; not written without.
    """
    device = pick_device(config.device)
    inputs = FrontierInputs(config, judge, prompts, device, rankings)
    samples = {split: _read_samples(file, prompts[split]) for split, file in sample_start(config, prompts).items()}
    reward = load_reward_model(config.reward, device)
    points = {split: _measure_points(inputs, reward, policies, split) for split in _SPLITS}
    start_model = EvaluatedModel.load(START, config.policy, device)
    parameters = [sum(p.numel() for p in model.parameters()) for model in (start_model.lm, reward.model)]
    wins: dict[str, dict[tuple[str, str], ResultRow]] = {}
    for split in _SPLITS:
        values = list(_sample_values(inputs, samples[split]))
        points[split] += _best_of_n_points(inputs, samples[split], values, reward_flops, parameters)
        wins[split] = _measure_wins(inputs, points[split], split)
        start = _start_means(values, inputs.measures)  # that of the last split, the test prompts
    rows = [_make_row(point, start, judge, wins) for point in points["test"]]
    write_records(out, rows)
    console.print(f"[bold]frontier[/] {len(rows)} points: {out}", soft_wrap=True)
    return rows


# --- points --------------------------------------------------------------------------------------------------------


def _measure_points(
    inputs: FrontierInputs, reward: ScalarModel, policies: Sequence[FrontierPolicy], split: str
) -> list[_Point]:
    """Sample every policy, the start first, and measure its answers."""
    config = inputs.config
    start = EvaluatedModel.load(START, config.policy, inputs.device)
    points = []
    for policy in (FrontierPolicy(START, START, Path(config.policy), 0.0), *policies):
        model = EvaluatedModel.load(policy.label, policy.folder, inputs.device)
        answers, examples, kl = sample_policy(model, start.lm, inputs.prompts[split], config)
        judged = zip(*inputs.judge.assess(answers), strict=True)
        values = dict(zip(inputs.judge.measures, judged, strict=True)) | {_PROXY: score_answers(reward, answers)}
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
    for prompt in samples:
        index = torch.tensor(prompt.samples)
        judged = inputs.judge.assess(prompt.answers(START))
        table = torch.tensor([[*values, score] for values, score in zip(judged, prompt.scores, strict=True)]).double()
        yield dict(zip(inputs.measures, table[index].T, strict=True))


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
        {name: sort_with_tie_means(values[_PROXY], values[name]) for name in inputs.measures}
        for values in sample_values
    ]
    tokens = fmean(prompt.tokens / len(prompt.samples) for prompt in samples)
    points = []
    for n in (2**power for power in range(1, config.samples.bit_length()) if 2**power <= config.samples):
        weights, point = best_of_n_weights(config.samples, n), _Point("best_of_n", f"best of {n}", reward_flops, n)
        point.values = {name: [[float(weights @ values[name])] for values in sorted_values] for name in inputs.measures}
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


def _start_means(
    sample_values: Sequence[Mapping[str, torch.Tensor]], measures: Sequence[str]
) -> dict[str, tuple[list[float], float]]:
    """Return, for each measure, the start's mean at each prompt and its standard deviation over all samples."""
    tables: dict[str, list[torch.Tensor]] = defaultdict(list)
    for values in sample_values:
        for name in measures:
            tables[name].append(values[name])
    return {
        name: ([float(table.mean()) for table in parts], stdev(torch.cat(parts).tolist()))
        for name, parts in tables.items()
    }


# --- rows ----------------------------------------------------------------------------------------------------------


def _measure_wins(inputs: FrontierInputs, points: Sequence[_Point], split: str) -> dict[tuple[str, str], ResultRow]:
    """Have each cohort rank all points' answers beside the start's. Return win rates by (label, cohort)."""
    lists = [
        [point.answers[prompt][answer] for point in points]
        for prompt in range(len(points[0].answers))
        for answer in range(inputs.config.answers)
    ]
    rows: dict[tuple[str, str], ResultRow] = {}
    for cohort in dict.fromkeys(cohort for at, cohort in inputs.judge.win_rates if at == split):
        rankings = inputs.judge.rank(lists, cohort)
        if inputs.rankings is not None:
            write_records(inputs.rankings / f"{split}.jsonl", rankings)
        for row in preference.measure(rankings, baseline=START):
            if row.metric == f"win_rate_vs_{START}" and row.condition == cohort:
                rows[row.model, cohort] = row
    return rows


def _make_row(
    point: _Point,
    start: Mapping[str, tuple[Sequence[float], float]],
    judge: FrontierJudge,
    wins: Mapping[str, Mapping[tuple[str, str], ResultRow]],
) -> Record:
    """Return one point: KL, each measure with its gain over the start on the same prompts, win rates, and costs."""
    prompts = [index for index, values in enumerate(point.kl) for _ in values]
    kl = mean([value for values in point.kl for value in values], prompts)
    row: dict[str, object] = {"method": point.method, "label": point.label, "n": point.n}
    row |= {"kl": kl.value, "kl_low": kl.low, "kl_high": kl.high, "kl_is_bound": point.n is not None}
    row["sqrt_kl"] = math.sqrt(max(0.0, kl.value or 0.0))
    for name in (*judge.measures, _PROXY):
        start_means, deviation = start[name]
        values = [value for per_prompt in point.values[name] for value in per_prompt]
        rows = [index for index, per_prompt in enumerate(point.values[name]) for _ in per_prompt]
        gain = paired_difference(values, [start_means[index] for index in rows], rows)
        row |= {name: fmean(values), f"{name}_gain": gain.value, f"{name}_low": gain.low, f"{name}_high": gain.high}
        row[f"{name}_start_sd"] = deviation
    for split, cohort in judge.win_rates:
        name, won = f"win_rate_{split}_{cohort}", wins[split].get((point.label, cohort))
        row |= {name: won and won.value, f"{name}_low": won and won.low, f"{name}_high": won and won.high}
    row |= {"training_flops": point.training_flops, "answer_flops": point.answer_flops}
    return Record.model_validate(row)
