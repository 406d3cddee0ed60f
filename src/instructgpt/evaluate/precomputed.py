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

from instructgpt.errors import BadInput
from instructgpt.evaluate.aggregate import Observation, Row, per_model
from instructgpt.evaluate.datasets import named_sources
from instructgpt.evaluate.judges.truthfulqa_judge import SURE
from instructgpt.evaluate.metrics import toxicity, truthfulness
from instructgpt.evaluate.tasks import EVALUATIONS
from instructgpt.evaluate.tasks.base import Asked, Question, Reply, Told, rows_of
from instructgpt.evaluate.tasks.real_toxicity import scored_rows
from instructgpt.evaluate.tasks.truthfulqa import spoken_rows
from instructgpt.run.directory import console

COLUMNS = {
    "said": ("sample", "said", "completion", "answer"),
    "references": ("ref_text", "references", "reference"),
    "model": ("model_type", "model"),
    "condition": ("prompt_type", "condition"),
    "group": ("context", "question", "prompt", "index", "id"),
}
"""What is read from which column, the first that is there."""


CONDITIONS = {
    "zero": "zero_shot", "zeroshot": "zero_shot", "few": "few_shot", "fewshot": "few_shot",
    "qa": "qa", "qainstruction": "instruction_qa", "instructionqa": "instruction_qa", "instruction": "instruction",
    "basic": "none", "none": "none", "respectful": "respectful", "biased": "biased",
}  # fmt: skip
"""How the paper's samples call their prompts (letters alone, without the word prompt), and what those are called here."""
ASKED = re.compile(r"\s*\n(?:Q|Question):")
"""Where a passage ends and its questions begin."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion with what it is measured against."""

    model: str
    condition: str
    group: str
    said: str
    references: tuple[str, ...]
    numbers: dict[str, float]


GENERATED = ("squad", "quac", "drop", "wmt15", "cnn_dm", "tldr")
"""Evaluations that compare what was said with references, by the very functions that measure models."""

NEEDED = {"truthfulqa": ("true", "info"), "real_toxicity": ("toxicity",)}
"""Columns with a judge's or a scorer's number, unless one is named that is to judge; the other evaluations need references."""
MISSING = {"truthfulqa": "unjudged", "real_toxicity": "unscored"}
"""What the share of samples without such a number is called."""


def files_by_evaluation(names: Sequence[str], completions: Sequence[str]) -> dict[str, list[Path]]:
    """The files of each evaluation: those given as NAME=FILE, else all without a name. `all` means every evaluation with a file of its own.

    Raises:
        BadInput: a file is not there, belongs to an evaluation that is not asked for, or there is none for one that is.
    """
    places, named = named_sources(completions, "completions")
    chosen = list(named) if "all" in names else list(dict.fromkeys(names))
    for name in named:
        if name not in chosen:
            raise BadInput(f"--completions {name}={named[name]}: {name} is not among the evaluations that are to be made")
    found = {name: [named[name]] if name in named else places for name in chosen}
    for name in names:
        if not found.get(name, named):
            raise BadInput(f"evaluate: no completions for {name}; give --completions {'NAME' if name == 'all' else name}=FILE")
    return found


def measure_samples(evaluation: str, files: Sequence[Path], told: Told | None = None) -> list[Row]:
    """The rows of one evaluation over files of samples, by model and condition, clustered by context.

    A sample without a number that should stand there is left out, and the share of those is a row: `unscored` or `unjudged`.

    Args:
        told: with judges or a scorer, these judge the samples, whatever numbers stand in the files.

    Raises:
        BadInput: the evaluation cannot be measured on samples, a column is missing, or a number is none.
    """
    told = told or Told()
    if evaluation not in (*GENERATED, *NEEDED):
        raise BadInput(f"evaluate: {evaluation} cannot be measured on --completions; these can: {', '.join((*GENERATED, *NEEDED))}")
    needed = () if {"truthfulqa": told.judges, "real_toxicity": told.scorer}.get(evaluation) else NEEDED.get(evaluation, ())
    wanted = ("said", "references") if evaluation in GENERATED else () if needed else ("said", "group")
    samples = [sample for file in files for sample in read_samples(file, wanted, needed)]
    whole = [sample for sample in samples if len(sample.numbers) == len(needed) and ("references" not in wanted or any(sample.references))]
    lacking = " and ".join(needed) or "reference"
    if not whole:
        raise BadInput(f"{', '.join(map(str, files))}: no sample has a {lacking}")
    if len(whole) < len(samples):
        console.print(f"{evaluation}: {len(samples) - len(whole)} of {len(samples)} samples without a {lacking} are left out", markup=False)
    if evaluation in NEEDED:
        rows = answered(whole, told) if evaluation == "truthfulqa" else continued(whole, told)
        return rows + (missing_numbers(evaluation, samples, len(needed)) if len(whole) < len(samples) else [])
    return EVALUATIONS[evaluation].measure([as_asked(number, sample) for number, sample in enumerate(samples)], told)


def missing_numbers(evaluation: str, samples: Sequence[Sample], needed: int) -> list[Row]:
    """The share of samples without a number, by model and condition."""
    rows: list[Row] = []
    for condition in dict.fromkeys(sample.condition for sample in samples):
        seen = [Observation(s.model, float(len(s.numbers) < needed), (s.group,)) for s in samples if s.condition == condition]
        rows += per_model(evaluation, MISSING[evaluation], condition, seen, share=True)
    return rows


def answered(samples: Sequence[Sample], told: Told) -> list[Row]:
    """TruthfulQA: whether answers are true and informative, by the judges that were named or by the numbers in the file."""
    if told.judges:
        return spoken_rows([(each.model, each.condition, each.group, each.said) for each in samples], told.judges, told)
    answers = [
        truthfulness.Answer(
            model=each.model,
            condition=each.condition,
            question=each.group,
            answer=each.said,
            truthful=each.numbers["true"] >= SURE,
            informative=each.numbers["info"] >= SURE,
        )
        for each in samples
    ]
    return truthfulness.measure(answers, against=(), evaluation="truthfulqa")


def continued(samples: Sequence[Sample], told: Told) -> list[Row]:
    """RealToxicityPrompts: how toxic continuations are, by the scorer that was named or by the numbers in the file."""
    if told.scorer:
        asked = [as_asked(number, sample, prompt=sample.group) for number, sample in enumerate(samples)]
        return scored_rows("real_toxicity", asked, told, lambda question: (question.condition,))
    found = [
        toxicity.Continuation(
            model=each.model, condition=each.condition, prompt=each.group, completion=each.said, toxicity=each.numbers["toxicity"]
        )
        for each in samples
    ]
    return toxicity.measure(found, against=(), evaluation="real_toxicity")


def as_asked(number: int, sample: Sample, **more: Any) -> Asked:
    """A sample as the question it answers and the reply it is."""
    question = Question(f"{number}", sample.condition, "", truth={"answers": list(sample.references), "context": sample.group, **more})
    return question, Reply(model=sample.model, id=question.id, condition=sample.condition, said=sample.said)


def read_samples(file: Path, wanted: Sequence[str], numbers: Sequence[str]) -> list[Sample]:
    """The samples of a file: which parts of COLUMNS they must have, and the columns of numbers. Raises BadInput for one without them.

    Questions about one passage share it: what belongs together is told by the `context` up to its first question.
    """
    samples: list[Sample] = []
    for number, line in enumerate(rows_of(file), 1):
        where = f"{file}, sample {number}"
        found = {part: next((line[name] for name in names if line.get(name) is not None), None) for part, names in COLUMNS.items()}
        for part in wanted:
            if not any(name in line for name in COLUMNS[part]):
                raise BadInput(f"{where}: no column {' or '.join(COLUMNS[part])} (columns found: {', '.join(map(str, line))})")
        samples.append(
            Sample(
                model=str(found["model"] or file.name.partition(".")[0]),
                condition=condition_of(str(found["condition"] or "")),
                group=ASKED.split(str(found["group"] if found["group"] is not None else number), maxsplit=1)[0],
                said=first_line(str(found["said"] or "")),
                references=alternatives(found["references"]),
                numbers={name: value for name in numbers if (value := number_in(line, name, where)) is not None},
            )
        )
    return samples


def condition_of(said: str) -> str:
    """A kind of prompt by its name here, where it has one: `QA + instruction` is `instruction_qa`, `few-shot` is `few_shot`."""
    return CONDITIONS.get(re.sub(r"[^a-z]|prompt", "", said.lower()), said)


def first_line(said: str) -> str:
    """What was said up to the first newline, white space around it taken away (paper, appendix D)."""
    return said.strip().split("\n")[0].strip()


def alternatives(found: Any) -> tuple[str, ...]:
    """References: a list of them, or one text with `|` between them."""
    listed = found if isinstance(found, list | tuple) else str(found or "").split("|")
    return tuple(str(each).strip() for each in listed) or ("",)


def number_in(line: dict[str, Any], name: str, where: str) -> float | None:
    """A probability in a row: a number from 0 to 1, or true and false; None for an empty cell, NaN or null.

    Raises:
        BadInput: there is no such column, or something else stands there; nothing is 0 by default.
    """
    if name not in line:
        raise BadInput(f"{where}: no column {name} (columns found: {', '.join(map(str, line))})")
    said = line[name]
    if said is None or str(said).strip().lower() in ("", "nan", "none", "null"):
        return None
    if isinstance(said, bool) or str(said).strip().lower() in ("true", "false"):
        return float(str(said).strip().lower() == "true")
    try:
        value = float(str(said))
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise BadInput(f"{where}: column '{name}' is {said!r}, expected a number from 0 to 1")
    return value
