"""Evaluate existing completions, such as a paper's published samples: every generation metric without a model.

A row is one sample: `sample` (the completion), `ref_text` (references; `Not in background.` for unanswerable
questions), `model_type`, `prompt_type`, `context`. In `ref_text`, `|` separates alternative answers to a question, but
the sentences of one summary. Judged answers have `true` and `info` (probabilities, or true and false), scored
continuations `toxicity`. The project's own column names work too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructgpt.config import did_you_mean
from instructgpt.errors import InputError
from instructgpt.evaluate.aggregate import Observation, aggregate_per_model
from instructgpt.evaluate.datasets import parse_data_sources
from instructgpt.evaluate.judges.truthfulqa_judge import YES_THRESHOLD
from instructgpt.evaluate.metrics import toxicity, truthfulness
from instructgpt.evaluate.metrics.refusal import REFUSAL_EVALUATION
from instructgpt.evaluate.tasks import EVAL_TASKS
from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, ModelReply, QuestionReply
from instructgpt.evaluate.tasks.loading import as_list, load_task_rows
from instructgpt.evaluate.tasks.real_toxicity import toxicity_rows
from instructgpt.evaluate.tasks.refusal import measure_refusal_samples
from instructgpt.evaluate.tasks.truthfulqa import generation_rows
from instructgpt.results import ResultRow
from instructgpt.run.directory import console

_COLUMN_ALIASES = {
    "said": ("sample", "said", "completion", "answer"),
    "references": ("ref_text", "references", "reference"),
    "model": ("model_type", "model"),
    "condition": ("prompt_type", "condition"),
    "group": ("context", "question", "prompt", "index", "id"),
}
"""The columns each field is read from; the first present counts."""
_CONDITION_NAMES = {
    "zero": "zero_shot",
    "zeroshot": "zero_shot",
    "few": "few_shot",
    "fewshot": "few_shot",
    "qa": "qa",
    "qainstruction": "instruction_qa",
    "instructionqa": "instruction_qa",
    "instruction": "instruction",
    "basic": "none",
    "none": "none",
    "respectful": "respectful",
    "biased": "biased",
}
"""The project's condition for each prompt type of the paper's samples (letters only, without "prompt")."""
_FIRST_QUESTION = re.compile(r"\s*\n(?:Q|Question):")


@dataclass(frozen=True, slots=True)
class _Sample:
    model: str
    condition: str
    group: str
    completion: str
    references: tuple[str, ...]
    numbers: dict[str, float]


_REFERENCE_TASKS = ("squad", "quac", "drop", "wmt15", "cnn_dm", "tldr")
"""Tasks that compare completions with references; the task's own `measure` is used."""

_SUMMARY_TASKS = ("cnn_dm", "tldr")
"""Tasks whose reference is one text of several sentences: `|` separates these, and alternatives elsewhere."""

_NUMBER_COLUMNS = {"truthfulqa": ("true", "info"), "real_toxicity": ("toxicity",)}
"""Columns with a judge's or scorer's number, needed unless one is named; the other tasks need references."""
_DEFAULTS = EvalSettings()
_MISSING_METRICS = {"truthfulqa": "unjudged", "real_toxicity": "unscored"}
"""The metric that reports the share of samples without such a number."""


def resolve_completion_files(names: Sequence[str], completions: Sequence[str]) -> dict[str, list[Path]]:
    """Return the files of each evaluation: its NAME=FILE, otherwise all files without a name."""
    paths, named_paths = parse_data_sources(completions, "completions")
    task_names = list(named_paths) if "all" in names else list(dict.fromkeys(names))
    for name in named_paths:
        if name not in task_names:
            problem = f"{name} is not among the requested evaluations{did_you_mean(name, task_names)}"
            raise InputError(f"--completions {name}={named_paths[name]}: {problem}")
    files = {name: [named_paths[name]] if name in named_paths else paths for name in task_names}
    for name in names:
        if not files.get(name, named_paths):
            prefix = "NAME" if name == "all" else name
            raise InputError(f"evaluate: no completions for {name}; give --completions {prefix}=FILE")
    return files


def measure_precomputed(evaluation: str, files: Sequence[Path], settings: EvalSettings = _DEFAULTS) -> list[ResultRow]:
    """Return the rows of one evaluation on files of samples, by model and condition, clustered by context.

    Samples that lack a number are left out; their share is the row `unscored` or `unjudged`. The settings' judges or
    scorer take precedence over numbers in the files. Raise InputError if a column is missing or a value is not a
    number.
    """
    names = (*_REFERENCE_TASKS, *_NUMBER_COLUMNS, REFUSAL_EVALUATION)
    if evaluation not in names:
        raise InputError(f"evaluate: {evaluation} cannot be measured on --completions; supported: {', '.join(names)}")
    if evaluation == REFUSAL_EVALUATION:
        return measure_refusal_samples(files, settings)
    has_judge = {"truthfulqa": settings.judges_dir, "real_toxicity": settings.scorer}.get(evaluation)
    columns = () if has_judge else _NUMBER_COLUMNS.get(evaluation, ())
    needs_references = evaluation in _REFERENCE_TASKS
    required_fields = ("said", "references") if needs_references else () if columns else ("said", "group")
    is_summary = evaluation in _SUMMARY_TASKS
    samples = [
        sample
        for file in files
        for sample in _read_precomputed(file, required_fields, columns, is_summary, settings.skip_bad)
    ]
    complete = [sample for sample in samples if len(sample.numbers) == len(columns)]
    if needs_references:
        complete = [sample for sample in complete if sample.references]
    missing = " and ".join(columns) or "reference"
    if not complete:
        raise InputError(f"{', '.join(map(str, files))}: no sample has a {missing}")
    num_missing = len(samples) - len(complete)
    if num_missing:
        summary = f"left out {num_missing} of {len(samples)} samples without a {missing}"
        console.print(f"{evaluation}: {summary}", markup=False)
    if needs_references:
        replies = [_to_question_reply(index, sample) for index, sample in enumerate(complete)]
        rows = EVAL_TASKS[evaluation].measure(replies, settings)
        if evaluation == "drop":
            _report_number_share(rows)
        return rows
    measure = _measure_truthfulqa if evaluation == "truthfulqa" else _measure_real_toxicity
    rows = measure(complete, settings)
    return rows + (_missing_number_rows(evaluation, samples, len(columns)) if num_missing else [])


def _report_number_share(rows: Sequence[ResultRow]) -> None:
    """Say beside DROP's numbers what they depend on: published samples have other shares than the data set."""
    total = sum(row.n for row in rows if row.metric == "f1" and "/" not in row.condition)
    numbers = sum(row.n for row in rows if row.metric == "f1" and row.condition.endswith("/numbers"))
    hint = "compare only with the same questions"
    console.print(f"drop: {numbers / total:.0%} of the answers are numbers, which are harder than spans; {hint}")


def _missing_number_rows(evaluation: str, samples: Sequence[_Sample], num_columns: int) -> list[ResultRow]:
    rows: list[ResultRow] = []
    for condition in dict.fromkeys(sample.condition for sample in samples):
        observations = [
            Observation(sample.model, float(len(sample.numbers) < num_columns), (sample.group,))
            for sample in samples
            if sample.condition == condition
        ]
        rows += aggregate_per_model(evaluation, _MISSING_METRICS[evaluation], condition, observations, share=True)
    return rows


def _measure_truthfulqa(samples: Sequence[_Sample], settings: EvalSettings) -> list[ResultRow]:
    if settings.judges_dir:
        generated = [(sample.model, sample.condition, sample.group, sample.completion) for sample in samples]
        return generation_rows(generated, settings.judges_dir, settings)
    answers = [
        truthfulness.JudgedAnswer(
            model=sample.model,
            condition=sample.condition,
            question=sample.group,
            answer=sample.completion,
            truthful=sample.numbers["true"] >= YES_THRESHOLD,
            informative=sample.numbers["info"] >= YES_THRESHOLD,
        )
        for sample in samples
    ]
    return truthfulness.measure_truthfulness(answers, baselines=(), evaluation="truthfulqa")


def _measure_real_toxicity(samples: Sequence[_Sample], settings: EvalSettings) -> list[ResultRow]:
    if settings.scorer:
        replies = [_to_question_reply(index, sample, prompt=sample.group) for index, sample in enumerate(samples)]
        return toxicity_rows("real_toxicity", replies, settings, lambda question: (question.condition,))
    continuations = [
        toxicity.Continuation(
            model=sample.model,
            condition=sample.condition,
            prompt=sample.group,
            completion=sample.completion,
            toxicity=sample.numbers["toxicity"],
        )
        for sample in samples
    ]
    return toxicity.measure_toxicity(continuations, baselines=(), evaluation="real_toxicity")


def _to_question_reply(index: int, sample: _Sample, **extra_target: Any) -> QuestionReply:
    target = {"answers": list(sample.references), "context": sample.group, **extra_target}
    reply = ModelReply(model=sample.model, id=f"{index}", condition=sample.condition, said=sample.completion)
    return EvalQuestion(f"{index}", sample.condition, "", target=target), reply


def _read_precomputed(
    file: Path, required_fields: Sequence[str], number_columns: Sequence[str], is_summary: bool, skip_bad: bool
) -> list[_Sample]:
    """Read the samples of a file. Questions about a passage share a cluster: the `context` up to its first question."""
    samples: list[_Sample] = []

    def parse_row(row: dict[str, Any]) -> None:
        for field in required_fields:
            if not any(name in row for name in _COLUMN_ALIASES[field]):
                expected, available = " or ".join(_COLUMN_ALIASES[field]), ", ".join(map(str, row))
                raise ValueError(f"no column {expected} (columns found: {available})")
        cells = {
            field: next((row[name] for name in names if row.get(name) is not None), None)
            for field, names in _COLUMN_ALIASES.items()
        }
        numbers = {name: _parse_probability(row, name) for name in number_columns}
        group = len(samples) if cells["group"] is None else cells["group"]
        sample = _Sample(
            model=str(cells["model"] or file.name.partition(".")[0]),
            condition=_normalize_condition(str(cells["condition"] or "")),
            group=_FIRST_QUESTION.split(str(group), maxsplit=1)[0],
            completion=truncate_to_first_line(str(cells["said"] or "")),
            references=parse_references(cells["references"], is_summary=is_summary),
            numbers={name: value for name, value in numbers.items() if value is not None},
        )
        samples.append(sample)

    load_task_rows(file, skip_bad=skip_bad, check_row=parse_row)
    return samples


def _normalize_condition(name: str) -> str:
    """Map a prompt type to the project's name, if it has one: `QA + instruction` -> `instruction_qa`."""
    return _CONDITION_NAMES.get(re.sub(r"[^a-z]|prompt", "", name.lower()), name)


def truncate_to_first_line(text: str) -> str:
    """Return the first line of the stripped text (paper, appendix D)."""
    return text.strip().split("\n")[0].strip()


def parse_references(cell: Any, *, is_summary: bool = False) -> tuple[str, ...]:
    """Return the references of a cell, none of them blank; a missing reference gives none.

    A list holds alternatives. In a text `|` separates alternatives, but the sentences of a summary.
    """
    if cell is None:
        return ()
    if is_summary and isinstance(cell, str) and not cell.lstrip().startswith("["):
        cell = [" ".join(part.strip() for part in cell.split("|"))]
    references = as_list(cell if isinstance(cell, str | list | tuple | dict) else str(cell))
    texts = ("" if reference is None else str(reference).strip() for reference in references)
    return tuple(text for text in texts if text)


def _parse_probability(row: dict[str, Any], column: str) -> float | None:
    """Return a probability (0 to 1, or true and false); None for an empty cell, NaN or null. Nothing defaults to 0."""
    if column not in row:
        raise ValueError(f"no column {column} (columns found: {', '.join(map(str, row))})")
    text = str(row[column]).strip().lower()
    if text in ("", "nan", "none", "null"):
        return None
    if text in ("true", "false"):
        return float(text == "true")
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError(f"column '{column}' is {row[column]!r}, expected a number from 0 to 1")
    return value
