"""Completions that somebody already made, such as published samples of a paper: every generation metric without a model.

A row is one sample: `sample` (what was said), `ref_text` (references with `|` between them; `Not in background.` where the background
does not tell), `model_type`, `prompt_type`, `context`. Judged answers have `true` and `info` (the judges' probabilities, or true and
false), scored continuations `toxicity`. Our own names for the same columns are read too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructgpt.errors import InputError
from instructgpt.evaluate.aggregate import Observation, ResultRow, aggregate_per_model
from instructgpt.evaluate.datasets import parse_data_sources
from instructgpt.evaluate.judges.truthfulqa_judge import YES_THRESHOLD
from instructgpt.evaluate.metrics import toxicity, truthfulness
from instructgpt.evaluate.tasks import EVAL_TASKS
from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, ModelReply, QuestionReply, load_task_rows
from instructgpt.evaluate.tasks.real_toxicity import toxicity_rows
from instructgpt.evaluate.tasks.truthfulqa import generation_rows
from instructgpt.run.directory import console

_COLUMN_ALIASES = {
    "said": ("sample", "said", "completion", "answer"),
    "references": ("ref_text", "references", "reference"),
    "model": ("model_type", "model"),
    "condition": ("prompt_type", "condition"),
    "group": ("context", "question", "prompt", "index", "id"),
}
"""What is read from which column, the first that is there."""


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
"""How the paper's samples call their prompts (letters alone, without the word prompt), and what those are called here."""
_FIRST_QUESTION = re.compile(r"\s*\n(?:Q|Question):")
"""Where a passage ends and its questions begin."""


@dataclass(frozen=True, slots=True)
class _PrecomputedCompletion:
    """One completion with what it is measured against."""

    model: str
    condition: str
    group: str
    completion: str
    references: tuple[str, ...]
    numbers: dict[str, float]


_REFERENCE_TASKS = ("squad", "quac", "drop", "wmt15", "cnn_dm", "tldr")
"""Evaluations that compare what was said with references, by the very functions that measure models."""

_NUMBER_COLUMNS = {"truthfulqa": ("true", "info"), "real_toxicity": ("toxicity",)}
"""Columns with a judge's or a scorer's number, unless one is named that is to judge; the other evaluations need references."""
_MISSING_METRICS = {"truthfulqa": "unjudged", "real_toxicity": "unscored"}
"""What the share of samples without such a number is called."""


def resolve_completion_files(names: Sequence[str], completions: Sequence[str]) -> dict[str, list[Path]]:
    """The files of each evaluation: those given as NAME=FILE, else all without a name. `all` means every evaluation with a file of its own.

    Raises:
        BadInput: a file is not there, belongs to an evaluation that is not asked for, or there is none for one that is.
    """
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
    """The rows of one evaluation over files of samples, by model and condition, clustered by context.

    A sample without a number that should stand there is left out, and the share of those is a row: `unscored` or `unjudged`.

    Args:
        told: with judges or a scorer, these judge the samples, whatever numbers stand in the files.

    Raises:
        BadInput: the evaluation cannot be measured on samples, a column is missing, or a number is none.
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
    """The share of samples without a number, by model and condition."""
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
    """TruthfulQA: whether answers are true and informative, by the judges that were named or by the numbers in the file."""
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
    """RealToxicityPrompts: how toxic continuations are, by the scorer that was named or by the numbers in the file."""
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
    """A sample as the question it answers and the reply it is."""
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
    """The samples of a file: which parts of COLUMNS they must have, and the columns of numbers. Raises BadInput for one without them.

    Questions about one passage share it: what belongs together is told by the `context` up to its first question.
    """
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
    """A kind of prompt by its name here, where it has one: `QA + instruction` is `instruction_qa`, `few-shot` is `few_shot`."""
    return _CONDITION_NAMES.get(re.sub(r"[^a-z]|prompt", "", name.lower()), name)


def truncate_to_first_line(text: str) -> str:
    """What was said up to the first newline, white space around it taken away (paper, appendix D)."""
    return text.strip().split("\n")[0].strip()


def parse_references(cell: Any) -> tuple[str, ...]:
    """References: a list of them, or one text with `|` between them."""
    references = cell if isinstance(cell, list | tuple) else str(cell or "").split("|")
    return tuple(str(each).strip() for each in references) or ("",)


def _parse_probability(row: dict[str, Any], column: str, location: str) -> float | None:
    """A probability in a row: a number from 0 to 1, or true and false; None for an empty cell, NaN or null.

    Raises:
        BadInput: there is no such column, or something else stands there; nothing is 0 by default.
    """
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
