"""`evaluate`: the paper's automatic evaluations of any models, from local files. What a model said is kept, and never asked twice.

instructgpt evaluate truthfulqa squad --model sft=runs/mine/sft ppo=runs/mine/ppo --data DATA --out results.json
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from rich.table import Table

from instructgpt.config import Options, did_you_mean
from instructgpt.errors import BadInput, RunFailed
from instructgpt.evaluate.ask import Subject
from instructgpt.evaluate.rows import Row, write_rows
from instructgpt.evaluate.samples import measure_samples
from instructgpt.evaluate.tasks import EVALUATIONS, WHOLE
from instructgpt.evaluate.tasks.shape import Evaluation, Question, Reply, Told, put
from instructgpt.evaluate.tasks.sources import named_models
from instructgpt.models.load import pick_device
from instructgpt.records import read_records, write_records
from instructgpt.run import console, content_hash

AT_ONCE = 512
"""Questions between two files of replies: what is lost when the command is stopped."""
COMPARING = ("judge", "judge_model", "judge_key", "judge_reads", "baseline", "max_tokens", "temperature")
"""Options of the evaluation of preference alone."""


class EvaluateConfig(Options):
    """Which evaluations of which models."""

    stage: ClassVar[str] = "evaluate"

    names: tuple[str, ...] = Field(description=f"evaluations: {', '.join((*EVALUATIONS, *WHOLE))}; or all")
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
    scorer: Path | None = Field(None, description="a toxicity scorer made by 'judge toxicity'")
    judge: str | None = Field(
        None,
        description="who compares completions: a reward model, a language model, an endpoint's address, or 'simulated'; people if none",
    )
    judge_model: str | None = Field(None, description="which model of the endpoint judges")
    judge_key: str | None = Field(None, description="the environment variable that holds the endpoint's key")
    judge_reads: Literal["text", "logp"] | None = Field(
        None, description="where a language model's verdict stands: in its text, or in the log-probabilities of A, B and C"
    )
    baseline: str | None = Field(None, description="the model that others are compared with; sft where there is one")
    max_tokens: int = Field(256, ge=1, description="where a completion that is compared is cut off")
    temperature: float = Field(1.0, ge=0, description="of the completions that are compared")
    seed: int = Field(0, ge=0, lt=2**32, description="draws questions and examples")
    device: str = Field("auto", description="cpu, cuda, cuda:1 …; auto takes a GPU when there is one")

    def inert(self) -> Iterator[str]:
        """Either models are asked, or completions are read; what people ranked needs neither."""
        compared = [name for name in self.names if name in WHOLE]
        for name in COMPARING:
            if name in self.model_fields_set and "preference" not in compared:
                yield f"--{name.replace('_', '-')} has no effect without preference"
        for name in ("judge_model", "judge_key"):
            if name in self.model_fields_set and "://" not in (self.judge or ""):
                yield f"--{name.replace('_', '-')} has no effect unless --judge is the address of an endpoint"
        if "preference" in compared:
            for name in ("max_tokens", "temperature"):
                if name in self.model_fields_set and not self.model:
                    yield f"--{name.replace('_', '-')} has no effect without --model"
        if compared == list(self.names):
            if not self.completions and self.data is None:
                yield "give --data (rankings, or with --model prompts), or --completions"
        elif self.completions:
            for name in ("model", "data", "limit", "shots", "scorer", "seed", "device"):
                if name in self.model_fields_set:
                    yield f"--{name} has no effect with --completions"
        elif not self.model or self.data is None:
            yield "give --model and --data, or --completions"


def main(config: EvaluateConfig) -> list[Row]:
    """Ask or read, measure, write, show. Every model is loaded once.

    Raises:
        BadInput: an evaluation is unknown, a file is missing or wrong, or a model does not load.
        RunFailed: a judge could not be reached any more; what it had judged before is measured and written.
    """
    rows: list[Row] = []
    stopped: list[str] = []
    for name in config.names:
        if name in WHOLE:
            found, problem = WHOLE[name](config)
            rows += found
            stopped += [problem] if problem else []
    if others := [name for name in config.names if name not in WHOLE]:
        measured = (measure_samples(name, config.completions) for name in others)
        asked = [row for rows in measured for row in rows] if config.completions else ask_models(config)
        show(asked)
        rows += asked
    if rows:
        write_rows(config.out, rows)
        console.print(f"results: {config.out}")
    if stopped:
        raise RunFailed(stopped[0])
    return rows


def ask_models(config: EvaluateConfig) -> list[Row]:
    """Put every evaluation to every model, as far as it was not done before, and measure."""
    assert config.data is not None
    chosen = evaluations([name for name in config.names if name not in WHOLE])
    models = named_models(config.model)
    told = Told(config.limit, config.shots, config.seed, config.scorer)
    if any(one.name == "real_toxicity" for one in chosen) and config.scorer is None:
        raise BadInput("evaluate: real_toxicity needs --scorer, a directory made by 'instructgpt judge toxicity'")
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
    known = (*EVALUATIONS, *WHOLE)
    for name in names:
        if name not in EVALUATIONS:
            raise BadInput(f"evaluate: no evaluation '{name}'{did_you_mean(name, known) or '; there are: ' + ', '.join(known)}")
    return [EVALUATIONS[name] for name in dict.fromkeys(names)]


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


def fingerprint(weights: str, questions: Sequence[Question]) -> str:
    """What a model was asked and which weights (their hash) it had, in twelve letters: other questions or weights are asked anew."""
    digest = hashlib.sha256(weights.encode())
    for question in questions:
        digest.update(json.dumps([question.id, question.condition, question.text, question.choices, question.max_tokens]).encode())
    return digest.hexdigest()[:12]
