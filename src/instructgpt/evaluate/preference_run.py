"""The `preference` evaluation: which model is preferred, by people, simulated labelers, a reward model or an LLM judge.

Completions are sampled here, or were written or ranked before. The measures are the same for every judge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from instructgpt.errors import InputError
from instructgpt.evaluate.cache import ResultCache
from instructgpt.evaluate.comparison_settings import PreferenceSettings
from instructgpt.evaluate.judges import pairwise
from instructgpt.evaluate.judges.http_client import Endpoint
from instructgpt.evaluate.judges.llm_judge import EndpointJudge, Judge, LocalJudge, collect_verdicts
from instructgpt.evaluate.metrics import labels
from instructgpt.evaluate.metrics.preference import measure, measure_pooled_preference, require_ranking_models
from instructgpt.evaluate.preference_inputs import PreferenceInputs, load_preference_inputs
from instructgpt.evaluate.reward.scores import ScoreAndLength, cached_reward_scores, ranks_by_score
from instructgpt.models.classifier import is_one_label_classifier
from instructgpt.models.policy import pick_device
from instructgpt.records import Cohort, Completion, Ranking, write_records
from instructgpt.results import ResultRow, with_judge
from instructgpt.run.directory import console, content_hash
from instructgpt.statistics.win_rate import WinRate, compute_win_rates
from instructgpt.world import SimulatedLabelers, World

_SIMULATED_JUDGE = "simulated"
_LABELER_COHORTS: tuple[Cohort, ...] = ("training", "heldout")
_LABELERS_PER_PROMPT = 2


@dataclass(frozen=True, slots=True)
class _Judgment:
    """What a judge decided. `condition` is the judge's name, empty for people; `identity` names its version."""

    rankings: Sequence[Ranking]
    rows: list[ResultRow] = field(default_factory=list)
    stop_reason: str | None = None
    condition: str = ""
    identity: str = ""


def run_preference_evaluation(
    settings: PreferenceSettings, map_fn: Callable[..., Any] = map
) -> tuple[list[ResultRow], str | None]:
    """Return the rows, and why the judge stopped early, if it did. Writes completions and rankings into the folder."""
    inputs = load_preference_inputs(settings, map_fn)
    judgment = _Judgment(inputs.rankings)
    if settings.judge is not None:
        judgment = _judge_candidates(settings.judge, settings, inputs, map_fn)
        write_records(settings.folder / "rankings.jsonl", judgment.rankings)
    elif not inputs.rankings:
        raise InputError("evaluate preference: the completions have no rankings; give --judge, or --data with rankings")
    rankings, rows = judgment.rankings, judgment.rows
    if rankings:
        baseline = _select_baseline(rankings, settings)
        rows = (
            measure(rankings, baseline, inputs.use_cases, judgment.condition)
            + measure_pooled_preference(rankings, baseline, judgment.condition)
            + labels.measure_labels(rankings)
            + rows
        )
        _print_win_rates(compute_win_rates(rankings, baseline), rows)
    return with_judge(rows, judgment.identity), judgment.stop_reason


def _judge_candidates(
    judge: str, settings: PreferenceSettings, inputs: PreferenceInputs, map_fn: Callable[..., Any]
) -> _Judgment:
    candidates = [group for group in inputs.get_candidates() if len({completion.model for completion in group}) > 1]
    if not candidates:
        raise InputError("evaluate preference: no prompt has completions of two models")
    if judge == _SIMULATED_JUDGE:
        rankings: list[Ranking] = []
        for cohort in _LABELER_COHORTS:
            world, seed = World(settings.seed), settings.seed + 1
            rankings += SimulatedLabelers(world, cohort, per_prompt=_LABELERS_PER_PROMPT, seed=seed).rank(candidates)
        return _Judgment(rankings, identity=f"{_SIMULATED_JUDGE} labelers of seed {settings.seed}")
    if "://" not in judge and _is_reward_model(judge):
        name, device = Path(judge).name, str(pick_device(settings.device))
        cache = ResultCache(settings.folder / "scores")
        texts = [(c.bare_prompt, c.completion, c.finish == "stop") for group in candidates for c in group]
        scores = cached_reward_scores(judge, device, cache, f"score {name}", map_fn, texts)
        identity = f"{name} sha256:{content_hash(Path(judge))[:12]}"
        return _Judgment(_rank_by_score(name, candidates, scores), condition=name, identity=identity)
    llm_judge = _load_llm_judge(judge, settings)
    counts = Counter(completion.model for group in candidates for completion in group)
    comparisons = pairwise.build_comparisons(candidates, settings.baseline or _default_baseline(counts, settings))
    prompts = [prompt for comparison in comparisons for prompt in comparison.judge_prompts()]
    verdicts, stop_reason = collect_verdicts(llm_judge, prompts, ResultCache(settings.folder / "verdicts"))
    judged = pairwise.attach_verdicts(comparisons, verdicts)
    rankings = [ranking for comparison in judged for ranking in comparison.rankings(llm_judge.name)]
    rows = pairwise.measure_judge_reliability(judged, llm_judge.name)
    rows += pairwise.measure_judge_agreement(judged, inputs.rankings, llm_judge.name)
    num_unjudged = sum(comparison.verdicts is None for comparison in judged)
    summary = f"{len(judged)} comparisons, {num_unjudged} not counted because a verdict is missing"
    console.print(f"{llm_judge.name}: {summary}", markup=False)
    return _Judgment(rankings, rows, stop_reason, llm_judge.name, llm_judge.identity)


def _load_llm_judge(judge: str, settings: PreferenceSettings) -> Judge:
    if "://" not in judge:
        source = settings.judge_reads or "logp"
        return LocalJudge.load(judge, source, pick_device(settings.device), settings.judge_max_tokens)
    if settings.judge_model is None:
        raise InputError(f"evaluate preference: --judge {judge} is an endpoint; name its model with --judge-model")
    endpoint = Endpoint.from_url(judge, settings.judge_key)
    options: dict[str, Any] = {"max_tokens": settings.judge_max_tokens, "temperature": settings.judge_temperature}
    return EndpointJudge(settings.judge_model, endpoint, settings.judge_reads or "text", **options)


def _is_reward_model(source: str) -> bool:
    try:
        return is_one_label_classifier(source)
    except InputError as error:
        expected = f"expected '{_SIMULATED_JUDGE}', the address of an endpoint, or a model"
        raise InputError(f"--judge {source}: {expected} ({error})") from error


def _rank_by_score(
    name: str, candidates: Sequence[Sequence[Completion]], scores: Sequence[ScoreAndLength]
) -> list[Ranking]:
    """Rank each list by the reward model's scores; equal scores tie. Completions beyond its context are left out."""
    rankings, num_too_long, score_iterator = [], 0, iter(scores)
    for completions in candidates:
        scored = [(c, score) for c in completions if (score := next(score_iterator)[0]) is not None]
        num_too_long += len(completions) - len(scored)
        if len(scored) > 1:
            ranking = Ranking(
                prompt=completions[0].prompt,
                messages=completions[0].messages,
                completions=tuple(completion.completion for completion, _ in scored),
                ranks=ranks_by_score([score for _, score in scored]),
                labeler=name,
                models=tuple(completion.model for completion, _ in scored),
                finish=tuple(completion.finish for completion, _ in scored),
            )
            rankings.append(ranking)
    if num_too_long:
        summary = f"left out {num_too_long} of {len(scores)} completions that are longer than its context"
        console.print(f"{name}: {summary}", markup=False)
    return rankings


def _select_baseline(rankings: Sequence[Ranking], settings: PreferenceSettings) -> str:
    counts = Counter(model for ranking in rankings for model in require_ranking_models(ranking))
    baseline = settings.baseline or _default_baseline(counts, settings)
    if baseline not in counts:
        available = ", ".join(sorted(counts))
        raise InputError(f"--baseline {baseline}: no completion is by that model; available: {available}")
    return baseline


def _default_baseline(counts: Counter[str], settings: PreferenceSettings) -> str:
    """Return `sft` as in the paper, else the first model of the command, else the model with the most completions."""
    names = [argument.rpartition("=")[0] or Path(argument).name for argument in settings.model]
    most_common = counts.most_common(1)[0][0] if counts else "sft"
    return next((name for name in ("sft", *names) if name in counts), most_common)


def _print_win_rates(win_rates: Sequence[WinRate], rows: Sequence[ResultRow]) -> None:
    length_controlled = {row.model: row.value for row in rows if row.metric.startswith("length_controlled_")}
    strengths = {row.model: row.value for row in rows if row.metric == "bradley_terry"}
    if not win_rates:
        return
    title = f"against {win_rates[0].opponent}"
    table = Table(
        Column(title, no_wrap=True, overflow="ellipsis", min_width=18, max_width=40),
        *(
            Column(heading, justify="right", no_wrap=True)
            for heading in ("won", "tied", "lost", "win rate, %", "same length", "strength", "p (Holm)")
        ),
        box=None,
        pad_edge=False,
        collapse_padding=True,
    )
    for win_rate in win_rates:
        rate, strength = win_rate.rate, strengths.get(win_rate.model)
        interval = "" if rate.low is None or rate.high is None else f" [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"
        table.add_row(
            win_rate.model,
            f"{win_rate.wins}",
            f"{win_rate.ties}",
            f"{win_rate.losses}",
            _percent(rate.value) + interval,
            _percent(length_controlled.get(win_rate.model)),
            "–" if strength is None else f"{strength:.0f}",
            "–" if win_rate.holm is None else "< 0.001" if win_rate.holm < 0.001 else f"{win_rate.holm:.3f}",
        )
    console.print(table)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
