"""`evaluate`: the paper's automatic evaluations of any models, from local files. What a model said is kept, and never asked twice.

instructgpt evaluate truthfulqa squad --model sft=runs/mine/sft ppo=runs/mine/ppo --data DATA --out results.json
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from rich.table import Table

from instructgpt.config import Options, did_you_mean
from instructgpt.errors import BadInput
from instructgpt.evaluate.ask import Subject
from instructgpt.evaluate.rows import Row, write_rows
from instructgpt.evaluate.samples import measure_samples
from instructgpt.evaluate.tasks import EVALUATIONS
from instructgpt.evaluate.tasks.real_toxicity import scorer_of
from instructgpt.evaluate.tasks.shape import Evaluation, Question, Reply, Told, put
from instructgpt.evaluate.truth_judge import ASKS, judge_folder
from instructgpt.models.load import pick_device
from instructgpt.records import read_records, write_records
from instructgpt.run import console, content_hash

AT_ONCE = 512
"""Questions between two files of replies: what is lost when the command is stopped."""


class EvaluateConfig(Options):
    """Which evaluations of which models."""

    stage: ClassVar[str] = "evaluate"

    names: tuple[str, ...] = Field(description=f"evaluations: {', '.join(EVALUATIONS)}; or all")
    model: tuple[str, ...] = Field((), description="models, each as NAME=MODEL, or MODEL alone: a directory or a hub name")
    data: Path | None = Field(
        None, description="the folder with the evaluations' files under their usual names, or the one file of one evaluation"
    )
    completions: tuple[Path, ...] = Field(
        (), description="in place of models and data: completions that were already made, with references"
    )
    out: Path = Field(Path("results.json"), description="the file of results; what the models said is kept in a folder beside it")
    limit: int | None = Field(None, ge=1, description="questions of each evaluation, drawn by the seed; all where not given")
    shots: int | None = Field(
        None, ge=0, description="examples in front of a question where a task has some; the paper's number where not given"
    )
    scorer: str | None = Field(
        None, description="who scores toxicity: a directory made by 'judge toxicity', detoxify, perspective:URL or moderation:URL"
    )
    judges: Path | None = Field(
        None,
        description="the folder with the judges that 'judge truth' and 'judge info' made (truth, info): truthfulqa then asks for answers",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="draws questions and examples")
    device: str = Field("auto", description="cpu, cuda, cuda:1 …; auto takes a GPU when there is one")

    def inert(self) -> Iterator[str]:
        """Either models are asked, or completions are read."""
        if self.completions:
            for name in ("model", "data", "limit", "shots", "seed"):
                if name in self.model_fields_set:
                    yield f"--{name} has no effect with --completions"
        elif not self.model or self.data is None:
            yield "give --model and --data, or --completions"


def main(config: EvaluateConfig) -> list[Row]:
    """Ask or read, measure, write, show. Every model is loaded once.

    Raises:
        BadInput: an evaluation is unknown, a file is missing or wrong, or a model does not load.
    """
    measured = (measure_samples(name, config.completions, told_by(config)) for name in config.names)
    rows = [row for rows in measured for row in rows] if config.completions else ask_models(config)
    write_rows(config.out, rows)
    show(rows)
    console.print(f"results: {config.out}")
    return rows


def told_by(config: EvaluateConfig) -> Told:
    """What every evaluation is told."""
    verdicts = config.out.with_suffix("") / "verdicts"
    return Told(config.limit, config.shots, config.seed, config.scorer, config.judges, config.device, verdicts)


def ask_models(config: EvaluateConfig) -> list[Row]:
    """Put every evaluation to every model, as far as it was not done before, and measure."""
    assert config.data is not None
    chosen = evaluations(config.names)
    models = named_models(config.model)
    told = told_by(config)
    for one in chosen:
        if one.name.startswith("real_toxicity"):
            scorer_of(one.name, told)  # what is wrong with it is said before models are asked
    if config.judges:
        for kind in ASKS:
            judge_folder(kind, config.judges)
    questions = {one.name: one.read(file_of(one, config.data, len(chosen)), told) for one in chosen}
    replies: dict[str, list[Reply]] = {one.name: [] for one in chosen}
    for name, source in models.items():
        subject, weights = None, content_hash(Path(source))
        for one in chosen:
            kept = config.out.with_suffix("") / one.name / f"{name}-{fingerprint(weights, questions[one.name])}"
            for start in range(0, len(questions[one.name]), AT_ONCE):
                part = kept / f"replies-{start // AT_ONCE:04}.jsonl"
                if not part.exists():
                    subject = subject or Subject.load(name, Path(source), pick_device(config.device))
                    write_records(part, put(subject, questions[one.name][start : start + AT_ONCE], config.seed))
                replies[one.name] += read_records(Reply, part)
                done = min(start + AT_ONCE, len(questions[one.name]))
                console.print(f"[bold]{one.name}[/] {name}: {done} of {len(questions[one.name])} questions", highlight=False)
        del subject
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    rows: list[Row] = []
    for one in chosen:
        by_name = {(question.id, question.condition): question for question in questions[one.name]}
        rows += one.measure([(by_name[reply.id, reply.condition], reply) for reply in replies[one.name]], told)
    return rows


def show(rows: Sequence[Row]) -> None:
    """A line for each thing measured, a column for each model; parts of the questions (`none/age`) stand in the file alone."""
    models = list(dict.fromkeys(row.model for row in rows))
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        if "/" not in row.condition:
            interval = "" if row.low is None or row.high is None else f" [{row.low:.3f}, {row.high:.3f}]"
            said = "–" if row.value is None else f"{row.value:.3f}{interval}"
            cells.setdefault((row.evaluation, row.metric, row.condition), {})[row.model] = said
    table = Table("", *models, box=None, pad_edge=False)
    for names, measured in cells.items():
        table.add_row(" ".join(names), *(measured.get(model, "") for model in models))
    console.print(table)


def evaluations(names: Sequence[str]) -> list[Evaluation]:
    """Evaluations by name. Raises BadInput for one that does not exist."""
    if "all" in names:
        return list(EVALUATIONS.values())
    for name in names:
        if name not in EVALUATIONS:
            raise BadInput(f"evaluate: no evaluation '{name}'{did_you_mean(name, EVALUATIONS) or '; there are: ' + ', '.join(EVALUATIONS)}")
    return [EVALUATIONS[name] for name in dict.fromkeys(names)]


def named_models(models: Sequence[str]) -> dict[str, str]:
    """Where each model is, by the name it has in the results. Raises BadInput where two have one name."""
    found: dict[str, str] = {}
    for said in models:
        name, _, source = said.rpartition("=")
        name = name or Path(source).name
        if name in found:
            raise BadInput(f"evaluate: two models are called '{name}'; give them names, as in --model first={found[name]} second={source}")
        found[name] = source
    return found


def file_of(evaluation: Evaluation, data: Path, count: int) -> Path:
    """The file of an evaluation: in the folder under its usual name, or the file itself where there is but one evaluation."""
    if data.is_file():
        if count > 1:
            raise BadInput(f"--data {data}: one file for {count} evaluations; give the folder that holds {evaluation.file} and the others")
        return data
    file = data / evaluation.file
    if not file.is_file():
        raise BadInput(
            f"--data {data}: {evaluation.name} reads {evaluation.file}, which is not there; give the folder that holds it, or the file"
        )
    return file


def how_said(question: Question) -> tuple[Any, ...]:
    """What besides its text decides how a question is answered; only what differs from the rule of appendix D."""
    other = (question.stop, question.temperature, question.top_p)
    return (question.max_tokens, *(() if other == ("\n", 0.0, 1.0) else other))


def fingerprint(weights: str, questions: Sequence[Question]) -> str:
    """What a model was asked and which weights (their hash) it had, in twelve letters: other questions or weights are asked anew."""
    digest = hashlib.sha256(weights.encode())
    for question in questions:
        digest.update(json.dumps([question.id, question.condition, question.text, question.choices, *how_said(question)]).encode())
    return digest.hexdigest()[:12]
