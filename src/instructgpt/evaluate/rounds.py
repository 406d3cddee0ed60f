"""What each round of `run --rounds` gained, and what it cost (docs/guides/rounds.md).

A round's policy is `policy@round-2`, its reward model `reward@round-2`; those of the control, which spent as many
rankings in one round, are `policy@one-round-of-3` and so on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from instructgpt.data.tokenization import PromptTokenizer
from instructgpt.evaluate.aggregate import Observation, aggregate_per_model, make_row, to_measurements
from instructgpt.evaluate.candidate_sampling import read_candidate_parts
from instructgpt.evaluate.metrics import preference
from instructgpt.evaluate.reward.metrics import ScoredRanking
from instructgpt.evaluate.reward.scores import attach_reward_scores, score_with_lengths
from instructgpt.models.reward_model import load_reward_model
from instructgpt.records import Completion, Ranking, read_records
from instructgpt.results import DIFFERENCE, ResultRow
from instructgpt.run.directory import read_run_record
from instructgpt.statistics import intervals
from instructgpt.world import World

ROUNDS_EVALUATION = "rounds"
SFT = "sft"
_PHASE_PASSES = {"backward": 2, "policy update": 3, "value update": 3, "pretraining text": 3}
"""Passes through the model of a phase, where a backward pass counts as two; other phases are one forward pass."""
_FLOPS_UNIT = 1e12


@dataclass(frozen=True, slots=True)
class RoundFiles:
    """Files of an evaluated round; the control's rankings are those that round 1 does not have."""

    name: str
    reward: Path
    policy: Path
    answers: Path
    candidates: Path
    rankings: Path
    heldout_rankings: Path
    is_control: bool = False

    @property
    def policy_name(self) -> str:
        return f"policy@{self.name}"

    @property
    def reward_name(self) -> str:
        return f"reward@{self.name}"


def without_round_rows(rows: Iterable[ResultRow]) -> list[ResultRow]:
    """Return rows without those of rounds, which every run measures again: a control of fewer rounds is outdated."""
    prefix = f"{ROUNDS_EVALUATION}/"
    return [
        row
        for row in rows
        if row.evaluation != ROUNDS_EVALUATION and not (row.evaluation == DIFFERENCE and row.metric.startswith(prefix))
    ]


# --- reward models -----------------------------------------------------------------------------------------------


def measure_reward_matrix(rounds: Sequence[RoundFiles], device: torch.device) -> list[ResultRow]:
    """Return the pair accuracy of every round's reward model on every round's validation rankings, by cohort.

    Beside it, the difference to the reward model of the round before those rankings, on the same pairs.
    """
    rankings = {files.name: read_records(Ranking, files.heldout_rankings) for files in rounds if not files.is_control}
    observations: dict[tuple[str, str], list[Observation]] = {}
    for files in rounds:
        model = load_reward_model(files.reward, device)
        for name, round_rankings in rankings.items():
            scored, _ = attach_reward_scores(round_rankings, partial(score_with_lengths, model))
            for ranking in scored:
                correct = list(_pair_accuracy(files.reward_name, ranking))
                observations.setdefault((ranking.cohort or "", name), []).extend(correct)
    names = list(rankings)
    rows: list[ResultRow] = []
    for (cohort, name), values in sorted(observations.items()):
        before = [f"reward@{names[names.index(name) - 1]}"] if name != names[0] else []
        condition = f"{cohort}/{name}"
        rows += aggregate_per_model(ROUNDS_EVALUATION, "pair_accuracy", condition, values, share=True, baselines=before)
    return rows


def _pair_accuracy(model: str, ranking: ScoredRanking) -> Iterator[Observation]:
    """Yield 1, 0, or 1/2 at equal scores for each pair that the labeler decided."""
    for better, worse in ranking.pairs():
        difference = ranking.scores[better] - ranking.scores[worse]
        value = 0.5 if difference == 0 else float(difference > 0)
        yield Observation(model, value, (ranking.prompt, ranking.labeler or ""))


# --- policies ----------------------------------------------------------------------------------------------------


def measure_win_rates(
    rounds: Sequence[RoundFiles], rankings: Sequence[Ranking], use_cases: Mapping[str, str]
) -> list[ResultRow]:
    """Return win rates of each policy by cohort, and by cohort and use case.

    `win_rate_vs_sft`, `win_rate_vs_previous` (the round before; SFT before round 1) and `win_rate_vs_one_round` (of the
    last round against the control).
    """
    comparisons = [("win_rate_vs_sft", SFT, files.policy_name) for files in rounds]
    comparisons += [("win_rate_vs_previous", before, files.policy_name) for before, files in _with_previous(rounds)]
    comparisons += [
        ("win_rate_vs_one_round", control.policy_name, _last_round(rounds).policy_name)
        for control in rounds
        if control.is_control
    ]
    measured = {
        baseline: preference.measure(rankings, baseline, use_cases)
        for baseline in dict.fromkeys(baseline for _, baseline, _ in comparisons)
    }
    return [
        replace(row, evaluation=ROUNDS_EVALUATION, metric=metric)
        for metric, baseline, model in comparisons
        for row in measured[baseline]
        if row.evaluation == "preference" and row.metric == f"win_rate_vs_{baseline}" and row.model == model
    ]


def _with_previous(rounds: Sequence[RoundFiles]) -> Iterator[tuple[str, RoundFiles]]:
    """Yield each round with the policy of the round before it."""
    before = SFT
    for files in rounds:
        if not files.is_control:
            yield before, files
            before = files.policy_name


def _last_round(rounds: Sequence[RoundFiles]) -> RoundFiles:
    return [files for files in rounds if not files.is_control][-1]


def measure_utility(
    rounds: Sequence[RoundFiles],
    answers: Mapping[str, Sequence[Completion]],
    world: World,
    use_cases: Mapping[str, str],
) -> list[ResultRow]:
    """Return true utility and length (words) of each policy's answers, and paired gains in utility.

    By model, and utility also by use case: `utility`, `words`, `utility_gain` over the round before (SFT before round
    1), `utility_minus_sft` and, of the last round, `utility_minus_one_round`. Intervals are clustered by prompt.
    """
    utility: dict[str, dict[str, list[Observation]]] = {}
    words: list[Observation] = []
    for model, completions in answers.items():
        for completion in completions:
            value = world.utility(completion.prompt, completion.completion, completion.finish)
            observation = Observation(model, value, (completion.prompt,))
            for condition in ("", use_cases[completion.prompt]):
                utility.setdefault(condition, {}).setdefault(model, []).append(observation)
            words.append(Observation(model, float(len(completion.completion.split())), (completion.prompt,)))
    pairs = [("utility_gain", before, files.policy_name) for before, files in _with_previous(rounds)]
    pairs += [("utility_minus_sft", SFT, files.policy_name) for files in rounds]
    pairs += [
        ("utility_minus_one_round", control.policy_name, _last_round(rounds).policy_name)
        for control in rounds
        if control.is_control
    ]
    rows = aggregate_per_model(ROUNDS_EVALUATION, "words", "", words)
    for condition, by_model in utility.items():
        everything = [observation for observations in by_model.values() for observation in observations]
        rows += aggregate_per_model(ROUNDS_EVALUATION, "utility", condition, everything)
        measurements = {model: to_measurements(observations) for model, observations in by_model.items()}
        rows += [
            make_row(
                ROUNDS_EVALUATION,
                metric,
                model,
                condition,
                intervals.difference(measurements[model], measurements[baseline]),
            )
            for metric, baseline, model in pairs
        ]
    return rows


# --- costs -------------------------------------------------------------------------------------------------------


def measure_costs(
    rounds: Sequence[RoundFiles], tokenizer: PromptTokenizer, gains: Iterable[ResultRow]
) -> list[ResultRow]:
    """Return what each round spent, and its gain per 1,000 rankings and per teraflop (10^12 operations).

    `rankings`, `flops` and `completions_share` by source. `gains` are the rows of win rates and utility; a round's gain
    is that over the round before, `total_…` is over SFT with all rankings up to the round. FLOPs are those of sampling
    candidates, training the reward model and training this policy: two operations a weight and token forward, four
    backward, without attention.
    """
    rows: list[ResultRow] = []
    by_key = {(row.metric, row.model): row for row in gains if row.condition in ("", "training")}
    costs: dict[str, tuple[int, float]] = {files.name: _count_costs(files, tokenizer) for files in rounds}
    total_rankings, total_flops = 0, 0.0
    for files in rounds:
        rankings, flops = costs[files.name]
        if files.is_control:  # it goes on from the candidates and rankings of round 1, not from its policy
            first = rounds[0]
            rankings += costs[first.name][0]
            flops += _candidate_flops(first, tokenizer)
            total_rankings, total_flops = rankings, flops
        else:
            total_rankings, total_flops = total_rankings + rankings, total_flops + flops
        spent = {"rankings": float(rankings), "flops": flops}
        spent |= {"total_rankings": float(total_rankings), "total_flops": total_flops}
        rows += [_exact_row(metric, files.policy_name, "", value, 1) for metric, value in spent.items()]
        rows += _source_rows(files)
        for metric, name, center, amounts in (
            ("win_rate_vs_previous", "win_rate_gain", 0.5, (rankings, flops)),
            ("utility_gain", "utility_gain", 0.0, (rankings, flops)),
            ("win_rate_vs_sft", "total_win_rate_gain", 0.5, (total_rankings, total_flops)),
            ("utility_minus_sft", "total_utility_gain", 0.0, (total_rankings, total_flops)),
        ):
            gain = by_key.get((metric, files.policy_name))
            rows += [] if gain is None else _per_unit_rows(gain, name, center, *amounts)
    return rows


def _count_costs(files: RoundFiles, tokenizer: PromptTokenizer) -> tuple[int, float]:
    """Return the rankings and the FLOPs of a round."""
    flops = _candidate_flops(files, tokenizer) + stage_flops(files.reward) + stage_flops(files.policy)
    return len(read_records(Ranking, files.rankings)), flops


def _candidate_flops(files: RoundFiles, tokenizer: PromptTokenizer) -> float:
    parameters = (read_run_record(files.policy) or {}).get("parameters", 0)
    completions = read_records(Completion, files.candidates)
    return (
        2.0
        * float(parameters)
        * sum(len(tokenizer.encode_example(completion, completion.completion)) for completion in completions)
    )


def stage_flops(folder: Path) -> float:
    """Return the FLOPs of a training stage from the tokens of its phases."""
    record = read_run_record(folder) or {}
    phases = record.get("phases", {}).items()
    tokens = sum(phase["tokens"] * _PHASE_PASSES.get(name, 1) for name, phase in phases)
    return 2.0 * float(record.get("parameters", 0)) * float(tokens)


def _source_rows(files: RoundFiles) -> list[ResultRow]:
    """Return the share of each source among the ranked completions."""
    lists = read_candidate_parts(files.candidates.parent, files.candidates.name)
    counts = Counter(completion.model for group in lists for completion in group)
    total = counts.total()
    return [
        _exact_row("completions_share", files.policy_name, source, count / total, count)
        for source, count in counts.most_common()
    ]


def _per_unit_rows(gain: ResultRow, name: str, center: float, rankings: int, flops: float) -> list[ResultRow]:
    """Return a gain and its interval per 1,000 rankings and per teraflop."""
    rows = []
    for unit, amount in (("1000_rankings", rankings / 1000), ("teraflop", flops / _FLOPS_UNIT)):
        value, low, high = (
            None if number is None or not amount else (number - center) / amount
            for number in (gain.value, gain.low, gain.high)
        )
        metric = f"{name}_per_{unit}"
        rows.append(ResultRow(ROUNDS_EVALUATION, metric, gain.model, gain.condition, value, low, high, gain.n))
    return rows


def _exact_row(metric: str, model: str, condition: str, value: float, n: int) -> ResultRow:
    return ResultRow(ROUNDS_EVALUATION, metric, model, condition, value, None, None, n)
