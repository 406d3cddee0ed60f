"""The `preference` evaluation: which model is preferred, by people, simulated labelers, a reward model or an LLM judge.

Completions are sampled here, or were written or ranked before. The measures are the same for every judge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from rich.table import Column, Table

from instructgpt.errors import InputError
from instructgpt.evaluate.cache import ResultCache
from instructgpt.evaluate.judges.http_client import Endpoint
from instructgpt.evaluate.judges.llm_judge import EndpointJudge, Judge, LocalJudge, collect_verdicts
from instructgpt.evaluate.judges.pairwise import (
    attach_verdicts,
    build_comparisons,
    measure_judge_agreement,
    measure_judge_reliability,
)
from instructgpt.evaluate.metrics import labels
from instructgpt.evaluate.metrics.preference import measure, measure_pooled_preference, require_ranking_models
from instructgpt.evaluate.preference_inputs import PreferenceInputs, load_preference_inputs
from instructgpt.evaluate.reward.scores import ScoreAndLength, cached_reward_scores, ranks_by_score
from instructgpt.models.policy import from_pretrained, pick_device
from instructgpt.records import Cohort, Completion, Ranking, write_records
from instructgpt.results import ResultRow, with_judge
from instructgpt.run.directory import console, content_hash
from instructgpt.statistics.win_rate import WinRate, compute_win_rates
from instructgpt.world import SimulatedLabelers, World

if TYPE_CHECKING:
    from instructgpt.evaluate.cli import EvaluateConfig

_SIMULATED_JUDGE = "simulated"
_LABELER_COHORTS: tuple[Cohort, ...] = ("training", "heldout")
_LABELERS_PER_PROMPT = 2


def run_preference_evaluation(
    config: EvaluateConfig, map_fn: Callable[..., Any] = map
) -> tuple[list[ResultRow], str | None]:
    """Return the rows, and why the judge stopped early, if it did. Writes completions and rankings into `settings.folder`."""
    folder = config.out.with_suffix("") / "preference"
    inputs = load_preference_inputs(config, folder, map_fn)
    rankings: Sequence[Ranking] = inputs.rankings
    rows: list[ResultRow] = []
    stop_reason, judge_condition, judge_identity = None, "", ""
    if config.judge is None:
        if not rankings:
            raise InputError(
                "evaluate preference: nobody has ranked these completions; give --judge, or --data with rankings"
            )
    else:
        rankings, rows, stop_reason, judge_condition, judge_identity = _judge_candidates(config, inputs, folder, map_fn)
        write_records(folder / "rankings.jsonl", rankings)
    if rankings:
        baseline = _select_baseline(rankings, config)
        rows = (
            measure(rankings, baseline, inputs.use_cases, judge_condition)
            + measure_pooled_preference(rankings, baseline, judge_condition)
            + labels.measure_labels(rankings)
            + rows
        )
        _print_win_rates(compute_win_rates(rankings, baseline), rows)
    return with_judge(rows, judge_identity), stop_reason


def _judge_candidates(
    config: EvaluateConfig, inputs: PreferenceInputs, folder: Path, map_fn: Callable[..., Any] = map
) -> tuple[list[Ranking], list[ResultRow], str | None, str, str]:
    """Have the judge compare the candidates. Returns (rankings, rows about the judge, stop reason, condition, identity)."""
    assert config.judge is not None
    candidates = [
        completions for completions in inputs.get_candidates() if len({each.model for each in completions}) > 1
    ]
    if not candidates:
        raise InputError("evaluate preference: no prompt has completions of two models")
    if config.judge == _SIMULATED_JUDGE:
        rankings: list[Ranking] = []
        for cohort in _LABELER_COHORTS:
            rankings += SimulatedLabelers(
                World(config.seed), cohort, per_prompt=_LABELERS_PER_PROMPT, seed=config.seed + 1
            ).rank(candidates)
        return rankings, [], None, "", f"{_SIMULATED_JUDGE} labelers of seed {config.seed}"
    if "://" not in config.judge and _is_reward_model(config.judge):
        name, device = Path(config.judge).name, str(pick_device(config.device))
        scored_texts = [
            (each.prompt, each.completion, each.finish == "stop") for completions in candidates for each in completions
        ]
        scores = cached_reward_scores(
            config.judge, device, ResultCache(folder / "scores"), f"score {name}", map_fn, scored_texts
        )
        return (
            _rank_by_score(name, candidates, scores),
            [],
            None,
            name,
            f"{name} sha256:{content_hash(Path(config.judge))[:12]}",
        )
    llm_judge = _load_llm_judge(config)
    counts = Counter(each.model for completions in candidates for each in completions)
    comparisons = build_comparisons(candidates, config.baseline or _default_baseline(counts, config))
    verdicts, stop_reason = collect_verdicts(
        llm_judge,
        [judge_prompt for comparison in comparisons for judge_prompt in comparison.judge_prompts()],
        ResultCache(folder / "verdicts"),
    )
    judged_comparisons = attach_verdicts(comparisons, verdicts)
    rankings = [ranking for each in judged_comparisons for ranking in each.rankings(llm_judge.name)]
    rows = measure_judge_reliability(judged_comparisons, llm_judge.name) + measure_judge_agreement(
        judged_comparisons, inputs.rankings, llm_judge.name
    )
    num_unjudged = sum(each.verdicts is None for each in judged_comparisons)
    console.print(
        f"{llm_judge.name}: {len(judged_comparisons)} games, {num_unjudged} of them without two verdicts and not counted",
        markup=False,
    )
    return rankings, rows, stop_reason, llm_judge.name, llm_judge.identity


def _load_llm_judge(config: EvaluateConfig) -> Judge:
    assert config.judge is not None
    if "://" not in config.judge:
        return LocalJudge.load(config.judge, config.judge_reads or "logp", pick_device(config.device))
    if config.judge_model is None:
        raise InputError(
            f"evaluate preference: --judge {config.judge} is an endpoint; --judge-model says which of its models is to judge"
        )
    return EndpointJudge(
        config.judge_model, Endpoint.from_url(config.judge, config.judge_key), config.judge_reads or "text"
    )


def _is_reward_model(source: str) -> bool:
    try:
        config = from_pretrained(transformers.AutoConfig, source)
    except InputError as error:
        raise InputError(
            f"--judge {source}: neither '{_SIMULATED_JUDGE}' nor an address nor a model ({error})"
        ) from error
    return any("SequenceClassification" in name for name in config.architectures or ())


def _rank_by_score(
    name: str, candidates: Sequence[Sequence[Completion]], scores: Sequence[ScoreAndLength]
) -> list[Ranking]:
    """Rank each list by the reward model's scores; equal scores tie. Completions beyond its context are left out and counted."""
    rankings, num_too_long, score_iterator = [], 0, iter(scores)
    for completions in candidates:
        scored_completions = [
            (completion, score) for completion in completions if (score := next(score_iterator)[0]) is not None
        ]
        num_too_long += len(completions) - len(scored_completions)
        if len(scored_completions) > 1:
            rankings.append(
                Ranking(
                    prompt=completions[0].prompt,
                    completions=tuple(completion.completion for completion, _ in scored_completions),
                    ranks=ranks_by_score([score for _, score in scored_completions]),
                    labeler=name,
                    models=tuple(completion.model for completion, _ in scored_completions),
                    finish=tuple(completion.finish for completion, _ in scored_completions),
                )
            )
    if num_too_long:
        console.print(
            f"{name}: {num_too_long} of {len(scores)} completions are longer than its context and left out",
            markup=False,
        )
    return rankings


def _select_baseline(rankings: Sequence[Ranking], config: EvaluateConfig) -> str:
    counts = Counter(model for ranking in rankings for model in require_ranking_models(ranking))
    baseline = config.baseline or _default_baseline(counts, config)
    if baseline not in counts:
        raise InputError(
            f"--baseline {baseline}: no completion is of that model; there are: {', '.join(sorted(counts))}"
        )
    return baseline


def _default_baseline(counts: Counter[str], config: EvaluateConfig) -> str:
    """Return `sft` as in the paper, else the first model of the command, else the model with the most completions."""
    model_names = [model_spec.rpartition("=")[0] or Path(model_spec).name for model_spec in config.model]
    return next(
        (name for name in ("sft", *model_names) if name in counts), counts.most_common(1)[0][0] if counts else "sft"
    )


def _print_win_rates(model_win_rates: Sequence[WinRate], rows: Sequence[ResultRow]) -> None:
    length_controlled = {row.model: row.value for row in rows if row.metric.startswith("length_controlled_")}
    strengths = {row.model: row.value for row in rows if row.metric == "bradley_terry"}
    if not model_win_rates:
        return
    headers = ("won", "tied", "lost", "win rate, %", "same length", "strength", "p (Holm)")
    name_column = Column(
        f"against {model_win_rates[0].opponent}", no_wrap=True, overflow="ellipsis", min_width=18, max_width=40
    )
    table = Table(
        name_column,
        *(Column(head, justify="right", no_wrap=True) for head in headers),
        box=None,
        pad_edge=False,
        collapse_padding=True,
    )
    for win_rate in model_win_rates:
        rate, strength = win_rate.rate, strengths.get(win_rate.model)
        interval = "" if rate.low is None or rate.high is None else f" [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"
        p_value = "–" if win_rate.holm is None else "< 0.001" if win_rate.holm < 0.001 else f"{win_rate.holm:.3f}"
        cells = (
            _percent(rate.value) + interval,
            _percent(length_controlled.get(win_rate.model)),
            "–" if strength is None else f"{strength:.0f}",
            p_value,
        )
        table.add_row(win_rate.model, f"{win_rate.wins}", f"{win_rate.ties}", f"{win_rate.losses}", *cells)
    console.print(table)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
