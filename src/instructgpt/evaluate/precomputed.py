"""Evaluate existing completions, such as a paper's published samples: every generation metric without a model.

A row is one sample: `sample` (the completion), `ref_text` (references separated by `|`; `Not in background.` for unanswerable
questions), `model_type`, `prompt_type`, `context`. Judged answers have `true` and `info` (probabilities, or true and false),
scored continuations `toxicity`. The project's own column names work too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructgpt.errors import InputError
from instructgpt.evaluate.aggregate import Observation, aggregate_per_model
from instructgpt.evaluate.datasets import parse_data_sources
from instructgpt.evaluate.judges.truthfulqa_judge import YES_THRESHOLD
from instructgpt.evaluate.metrics import toxicity, truthfulness
from instructgpt.evaluate.tasks import EVAL_TASKS
from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, ModelReply, QuestionReply, load_task_rows
from instructgpt.evaluate.tasks.real_toxicity import toxicity_rows
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
class _PrecomputedCompletion:
    model: str
    condition: str
    group: str
    completion: str
    references: tuple[str, ...]
    numbers: dict[str, float]


_REFERENCE_TASKS = ("squad", "quac", "drop", "wmt15", "cnn_dm", "tldr")
"""Tasks that compare completions with references; the task's own `measure` is used."""

_NUMBER_COLUMNS = {"truthfulqa": ("true", "info"), "real_toxicity": ("toxicity",)}
"""Columns with a judge's or scorer's number, needed unless a judge or scorer is named; the other tasks need references."""
_MISSING_METRICS = {"truthfulqa": "unjudged", "real_toxicity": "unscored"}
"""The metric that reports the share of samples without such a number."""


def resolve_completion_files(names: Sequence[str], completions: Sequence[str]) -> dict[str, list[Path]]:
    """Return the files of each evaluation: its NAME=FILE, otherwise all files without a name. Raise InputError if it has none."""
    paths, named_paths = parse_data_sources(completions, "completions")
    task_names = list(named_paths) if "all" in names else list(dict.fromkeys(names))
    for name in named_paths:
        if name not in task_names:
            raise InputError(
                f"--completions {name}={named_paths[name]}: {name} is not among the evaluations that are to be made"
            )
    files = {name: [named_paths[name]] if name in named_paths else paths for name in task_names}
    for name in names:
        if not files.get(name, named_paths):
            raise InputError(
                f"evaluate: no completions for {name}; give --completions {'NAME' if name == 'all' else name}=FILE"
            )
    return files


def measure_precomputed(
    evaluation: str, files: Sequence[Path], settings: EvalSettings | None = None
) -> list[ResultRow]:
    """Return the rows of one evaluation on files of samples, by model and condition, clustered by context.

    Samples that lack a number are left out; their share is the row `unscored` or `unjudged`. The settings' judges or scorer take
    precedence over numbers in the files. Raise InputError if a column is missing or a value is not a number.
    """
    settings = settings or EvalSettings()
    if evaluation not in (*_REFERENCE_TASKS, *_NUMBER_COLUMNS):
        raise InputError(
            f"evaluate: {evaluation} cannot be measured on --completions; these can: {', '.join((*_REFERENCE_TASKS, *_NUMBER_COLUMNS))}"
        )
    number_columns = (
        ()
        if {"truthfulqa": settings.judges_dir, "real_toxicity": settings.scorer}.get(evaluation)
        else _NUMBER_COLUMNS.get(evaluation, ())
    )
    required_fields = (
        ("said", "references") if evaluation in _REFERENCE_TASKS else () if number_columns else ("said", "group")
    )
    completions = [sample for file in files for sample in _read_precomputed(file, required_fields, number_columns)]
    complete = [
        sample
        for sample in completions
        if len(sample.numbers) == len(number_columns)
        and ("references" not in required_fields or any(sample.references))
    ]
    missing_columns = " and ".join(number_columns) or "reference"
    if not complete:
        raise InputError(f"{', '.join(map(str, files))}: no sample has a {missing_columns}")
    if len(complete) < len(completions):
        console.print(
            f"{evaluation}: {len(completions) - len(complete)} of {len(completions)} samples without a {missing_columns} are left out",
            markup=False,
        )
    if evaluation in _NUMBER_COLUMNS:
        rows = (
            _measure_truthfulqa(complete, settings)
            if evaluation == "truthfulqa"
            else _measure_real_toxicity(complete, settings)
        )
        return rows + (
            _missing_number_rows(evaluation, completions, len(number_columns))
            if len(complete) < len(completions)
            else []
        )
    return EVAL_TASKS[evaluation].measure(
        [_to_question_reply(number, sample) for number, sample in enumerate(completions)], settings
    )


def _missing_number_rows(
    evaluation: str, completions: Sequence[_PrecomputedCompletion], column_count: int
) -> list[ResultRow]:
    rows: list[ResultRow] = []
    for condition in dict.fromkeys(sample.condition for sample in completions):
        observations = [
            Observation(s.model, float(len(s.numbers) < column_count), (s.group,))
            for s in completions
            if s.condition == condition
        ]
        rows += aggregate_per_model(evaluation, _MISSING_METRICS[evaluation], condition, observations, share=True)
    return rows


def _measure_truthfulqa(completions: Sequence[_PrecomputedCompletion], settings: EvalSettings) -> list[ResultRow]:
    if settings.judges_dir:
        return generation_rows(
            [
                (completion.model, completion.condition, completion.group, completion.completion)
                for completion in completions
            ],
            settings.judges_dir,
            settings,
        )
    answers = [
        truthfulness.JudgedAnswer(
            model=completion.model,
            condition=completion.condition,
            question=completion.group,
            answer=completion.completion,
            truthful=completion.numbers["true"] >= YES_THRESHOLD,
            informative=completion.numbers["info"] >= YES_THRESHOLD,
        )
        for completion in completions
    ]
    return truthfulness.measure_truthfulness(answers, baselines=(), evaluation="truthfulqa")


def _measure_real_toxicity(completions: Sequence[_PrecomputedCompletion], settings: EvalSettings) -> list[ResultRow]:
    if settings.scorer:
        question_replies = [
            _to_question_reply(number, sample, prompt=sample.group) for number, sample in enumerate(completions)
        ]
        return toxicity_rows("real_toxicity", question_replies, settings, lambda question: (question.condition,))
    continuations = [
        toxicity.Continuation(
            model=completion.model,
            condition=completion.condition,
            prompt=completion.group,
            completion=completion.completion,
            toxicity=completion.numbers["toxicity"],
        )
        for completion in completions
    ]
    return toxicity.measure_toxicity(continuations, baselines=(), evaluation="real_toxicity")


def _to_question_reply(index: int, completion: _PrecomputedCompletion, **extra_truth: Any) -> QuestionReply:
    question = EvalQuestion(
        f"{index}",
        completion.condition,
        "",
        target={"answers": list(completion.references), "context": completion.group, **extra_truth},
    )
    return question, ModelReply(
        model=completion.model, id=question.id, condition=completion.condition, said=completion.completion
    )


def _read_precomputed(
    file: Path, required_fields: Sequence[str], number_columns: Sequence[str]
) -> list[_PrecomputedCompletion]:
    """Read the samples of a file. Questions about one passage share a cluster: the `context` up to its first question."""
    completions: list[_PrecomputedCompletion] = []
    for index, row in enumerate(load_task_rows(file), 1):
        location = f"{file}, sample {index}"
        cells = {
            field: next((row[name] for name in names if row.get(name) is not None), None)
            for field, names in _COLUMN_ALIASES.items()
        }
        for field in required_fields:
            if not any(name in row for name in _COLUMN_ALIASES[field]):
                raise InputError(
                    f"{location}: no column {' or '.join(_COLUMN_ALIASES[field])} (columns found: {', '.join(map(str, row))})"
                )
        completions.append(
            _PrecomputedCompletion(
                model=str(cells["model"] or file.name.partition(".")[0]),
                condition=_normalize_condition(str(cells["condition"] or "")),
                group=_FIRST_QUESTION.split(str(cells["group"] if cells["group"] is not None else index), maxsplit=1)[
                    0
                ],
                completion=truncate_to_first_line(str(cells["said"] or "")),
                references=parse_references(cells["references"]),
                numbers={
                    name: value
                    for name in number_columns
                    if (value := _parse_probability(row, name, location)) is not None
                },
            )
        )
    return completions


def _normalize_condition(name: str) -> str:
    """Map a prompt type to the project's name, if it has one: `QA + instruction` -> `instruction_qa`."""
    return _CONDITION_NAMES.get(re.sub(r"[^a-z]|prompt", "", name.lower()), name)


def truncate_to_first_line(text: str) -> str:
    """Return the first line of the stripped text (paper, appendix D)."""
    return text.strip().split("\n")[0].strip()


def parse_references(cell: Any) -> tuple[str, ...]:
    references = cell if isinstance(cell, list | tuple) else str(cell or "").split("|")
    return tuple(str(each).strip() for each in references) or ("",)


def _parse_probability(row: dict[str, Any], column: str, location: str) -> float | None:
    """Return a probability (0 to 1, or true and false); None for an empty cell, NaN or null. Nothing defaults to 0."""
    if column not in row:
        raise InputError(f"{location}: no column {column} (columns found: {', '.join(map(str, row))})")
    cell = row[column]
    if cell is None or str(cell).strip().lower() in ("", "nan", "none", "null"):
        return None
    if isinstance(cell, bool) or str(cell).strip().lower() in ("true", "false"):
        return float(str(cell).strip().lower() == "true")
    try:
        value = float(str(cell))
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise InputError(f"{location}: column '{column}' is {cell!r}, expected a number from 0 to 1")
    return value
