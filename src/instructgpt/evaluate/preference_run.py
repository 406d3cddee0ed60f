"""Which model is preferred: by people who ranked or rated, by simulated labelers, by a reward model, or by a language model as the judge.

Completions are sampled here, or were ranked or written before; whoever judges, the same numbers are made of the judgements.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from rich.table import Column, Table

from instructgpt.errors import BadInput
from instructgpt.evaluate.aggregate import Row, judged
from instructgpt.evaluate.cache import Cache
from instructgpt.evaluate.judges.http_client import Endpoint
from instructgpt.evaluate.judges.llm_judge import EndpointJudge, Judge, LocalJudge, verdicts_of
from instructgpt.evaluate.judges.pairwise import games_of, judged_games, reliability, with_people
from instructgpt.evaluate.metrics import labels
from instructgpt.evaluate.metrics.preference import measure, measure_whole, models_of
from instructgpt.evaluate.preference_inputs import Source, read_source
from instructgpt.evaluate.reward.scores import Scored, kept_scores, ranks_by_score
from instructgpt.models.policy import from_pretrained, pick_device
from instructgpt.records import Cohort, Completion, Ranking, write_records
from instructgpt.run.directory import console, content_hash
from instructgpt.statistics.win_rate import WinRate, win_rates
from instructgpt.world import SimulatedLabelers, World

if TYPE_CHECKING:
    from instructgpt.evaluate.cli import EvaluateConfig

SIMULATED = "simulated"
COHORTS: tuple[Cohort, ...] = ("training", "heldout")
LABELERS = 2
"""Simulated labelers of each cohort for a prompt."""


def run(config: EvaluateConfig, over: Callable[..., Any] = map) -> tuple[list[Row], str | None]:
    """The rows, and why the judge stopped before the end, where it did. Writes completions and rankings into the folder beside `--out`.

    Raises:
        BadInput: a file, model, judge or baseline is wrong.
        RunFailed: the judge could not be reached at all.
    """
    folder = config.out.with_suffix("") / "preference"
    source = read_source(config, folder, over)
    rankings: Sequence[Ranking] = source.rankings
    rows: list[Row] = []
    stopped, name, identity = None, "", ""
    if config.judge is None:
        if not rankings:
            raise BadInput("evaluate preference: nobody has ranked these completions; give --judge, or --data with rankings")
    else:
        rankings, rows, stopped, name, identity = judge(config, source, folder, over)
        write_records(folder / "rankings.jsonl", rankings)
    if rankings:
        baseline = baseline_of(rankings, config)
        rows = (
            measure(rankings, baseline, source.use_cases, name) + measure_whole(rankings, baseline, name) + labels.measure(rankings) + rows
        )
        show(win_rates(rankings, baseline), rows)
    return judged(rows, identity), stopped


def judge(
    config: EvaluateConfig, source: Source, folder: Path, over: Callable[..., Any] = map
) -> tuple[list[Ranking], list[Row], str | None, str, str]:
    """By whoever `--judge` names: rankings, rows about it, why it stopped, its name as a condition (none for people), its identity."""
    assert config.judge is not None
    candidates = [completions for completions in source.candidates() if len({each.model for each in completions}) > 1]
    if not candidates:
        raise BadInput("evaluate preference: no prompt has completions of two models")
    if config.judge == SIMULATED:
        rankings: list[Ranking] = []
        for cohort in COHORTS:
            rankings += SimulatedLabelers(World(config.seed), cohort, per_prompt=LABELERS, seed=config.seed + 1).rank(candidates)
        return rankings, [], None, "", f"{SIMULATED} labelers of seed {config.seed}"
    if "://" not in config.judge and is_reward_model(config.judge):
        name, device = Path(config.judge).name, str(pick_device(config.device))
        texts = [(each.prompt, each.completion, each.finish == "stop") for completions in candidates for each in completions]
        scores = kept_scores(config.judge, device, Cache(folder / "scores"), f"score {name}", over, texts)
        return by_score(name, candidates, scores), [], None, name, f"{name} sha256:{content_hash(Path(config.judge))[:12]}"
    judging = language_model(config)
    counts = Counter(each.model for completions in candidates for each in completions)
    games = games_of(candidates, config.baseline or default_baseline(counts, config))
    verdicts, stopped = verdicts_of(judging, [match for game in games for match in game.matches()], Cache(folder / "verdicts"))
    played = judged_games(games, verdicts)
    rankings = [ranking for each in played for ranking in each.rankings(judging.name)]
    rows = reliability(played, judging.name) + with_people(played, source.rankings, judging.name)
    lost = sum(each.verdicts is None for each in played)
    console.print(f"{judging.name}: {len(played)} games, {lost} of them without two verdicts and not counted", markup=False)
    return rankings, rows, stopped, judging.name, judging.identity


def language_model(config: EvaluateConfig) -> Judge:
    """The judge behind an address, or in a directory or on the hub."""
    assert config.judge is not None
    if "://" not in config.judge:
        return LocalJudge.load(config.judge, config.judge_reads or "logp", pick_device(config.device))
    if config.judge_model is None:
        raise BadInput(f"evaluate preference: --judge {config.judge} is an endpoint; --judge-model says which of its models is to judge")
    return EndpointJudge(config.judge_model, Endpoint.at(config.judge, config.judge_key), config.judge_reads or "text")


def is_reward_model(source: str) -> bool:
    """Whether a model is a classifier with one label. Raises BadInput where there is no model."""
    try:
        config = from_pretrained(transformers.AutoConfig, source)
    except BadInput as error:
        raise BadInput(f"--judge {source}: neither '{SIMULATED}' nor an address nor a model ({error})") from error
    return any("SequenceClassification" in name for name in config.architectures or ())


def by_score(name: str, candidates: Sequence[Sequence[Completion]], scores: Sequence[Scored]) -> list[Ranking]:
    """One ranking for each list, by the scores of the reward model `name`; equal scores tie. What it cannot read is left out and said."""
    rankings, unread, every = [], 0, iter(scores)
    for completions in candidates:
        found = [(each, score) for each in completions if (score := next(every)[0]) is not None]
        unread += len(completions) - len(found)
        if len(found) > 1:
            rankings.append(
                Ranking(
                    prompt=completions[0].prompt,
                    completions=tuple(each.completion for each, _ in found),
                    ranks=ranks_by_score([score for _, score in found]),
                    labeler=name,
                    models=tuple(each.model for each, _ in found),
                    finish=tuple(each.finish for each, _ in found),
                )
            )
    if unread:
        console.print(f"{name}: {unread} of {len(scores)} completions are longer than its context and left out", markup=False)
    return rankings


def baseline_of(rankings: Sequence[Ranking], config: EvaluateConfig) -> str:
    """The model to compare with. Raises BadInput where it is not among those ranked."""
    counts = Counter(model for ranking in rankings for model in models_of(ranking))
    chosen = config.baseline or default_baseline(counts, config)
    if chosen not in counts:
        raise BadInput(f"--baseline {chosen}: no completion is of that model; there are: {', '.join(sorted(counts))}")
    return chosen


def default_baseline(counts: Counter[str], config: EvaluateConfig) -> str:
    """`sft` as in the paper, else the first model of the command, else the one with most completions."""
    named = [said.rpartition("=")[0] or Path(said).name for said in config.model]
    return next((name for name in ("sft", *named) if name in counts), counts.most_common(1)[0][0] if counts else "sft")


def show(wins: Sequence[WinRate], rows: Sequence[Row]) -> None:
    """The models against the baseline, best first; intervals of the other numbers stand in the file."""
    equal = {row.model: row.value for row in rows if row.metric.startswith("length_controlled_")}
    points = {row.model: row.value for row in rows if row.metric == "bradley_terry"}
    if not wins:
        return
    heads = ("won", "tied", "lost", "win rate, %", "same length", "strength", "p (Holm)")
    names = Column(f"against {wins[0].other}", no_wrap=True, overflow="ellipsis", min_width=18, max_width=40)
    table = Table(names, *(Column(head, justify="right", no_wrap=True) for head in heads), box=None, pad_edge=False, collapse_padding=True)
    for each in wins:
        rate, strength = each.rate, points.get(each.model)
        ends = "" if rate.low is None or rate.high is None else f" [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"
        p = "–" if each.holm is None else "< 0.001" if each.holm < 0.001 else f"{each.holm:.3f}"
        cells = (_percent(rate.value) + ends, _percent(equal.get(each.model)), "–" if strength is None else f"{strength:.0f}", p)
        table.add_row(each.model, f"{each.wins}", f"{each.ties}", f"{each.losses}", *cells)
    console.print(table)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
