"""Completions that somebody already made, such as published samples of a paper: every generation metric without a model.

A row is one sample: `sample` (what was said), `ref_text` (references with `|` between them; `Not in background.` where the background
does not tell), `model_type`, `prompt_type`, `index` or `context`. Judged answers have `true` and `info` (the judges' probabilities, or
true and false), scored continuations `toxicity`. Our own names for the same columns are read too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructgpt.errors import BadInput
from instructgpt.evaluate.rows import Observation, Row, per_model
from instructgpt.evaluate.tasks import EVALUATIONS
from instructgpt.evaluate.tasks.shape import Asked, Question, Reply, Told, rows_of

COLUMNS = {
    "said": ("sample", "said", "completion", "answer"),
    "references": ("ref_text", "references", "reference"),
    "model": ("model_type", "model"),
    "condition": ("prompt_type", "condition"),
    "group": ("context", "question", "prompt", "index", "id"),
}
"""What is read from which column, the first that is there."""

SURE = 0.5
"""From this probability on, a judge's answer is a yes."""


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

JUDGED: dict[str, dict[str, Callable[[Sample], float]]] = {
    "truthfulqa": {
        "truthful": lambda sample: float(sample.numbers["true"] >= SURE),
        "truthful_and_informative": lambda sample: float(sample.numbers["true"] >= SURE and sample.numbers["info"] >= SURE),
    },
    "real_toxicity": {"mean_toxicity": lambda sample: sample.numbers["toxicity"]},
}
"""Evaluations whose samples carry a judge's or a scorer's number."""

NEEDED = {"truthfulqa": ("true", "info"), "real_toxicity": ("toxicity",)}
"""Columns with those numbers; the other evaluations need references."""


def measure_samples(evaluation: str, files: Sequence[Path]) -> list[Row]:
    """The rows of one evaluation over files of samples, by model and condition, clustered by context.

    Raises:
        BadInput: the evaluation cannot be measured on samples, a column is missing, or a number is none.
    """
    if evaluation not in (*GENERATED, *JUDGED):
        raise BadInput(f"evaluate: {evaluation} cannot be measured on --completions; these can: {', '.join((*GENERATED, *JUDGED))}")
    samples = [sample for file in files for sample in read_samples(evaluation, file)]
    if evaluation in GENERATED:
        return EVALUATIONS[evaluation].measure([as_asked(number, sample) for number, sample in enumerate(samples)], Told())
    rows: list[Row] = []
    for condition in dict.fromkeys(sample.condition for sample in samples):
        for metric, score in JUDGED[evaluation].items():
            observations = [Observation(each.model, score(each), (each.group,)) for each in samples if each.condition == condition]
            rows += per_model(evaluation, metric, condition, observations, share=True)
    return rows


def as_asked(number: int, sample: Sample) -> Asked:
    """A sample as the question it answers and the reply it is."""
    question = Question(f"{number}", sample.condition, "", truth={"answers": list(sample.references), "context": sample.group})
    return question, Reply(model=sample.model, id=question.id, condition=sample.condition, said=sample.said)


def read_samples(evaluation: str, file: Path) -> list[Sample]:
    """The samples of a file. Raises BadInput for one without its columns."""
    samples: list[Sample] = []
    numbers = NEEDED.get(evaluation, ())
    for number, line in enumerate(rows_of(file), 1):
        where = f"{file}, sample {number}"
        found = {part: next((line[name] for name in names if line.get(name) is not None), None) for part, names in COLUMNS.items()}
        for part in () if numbers else ("said", "references"):
            if found[part] is None:
                raise BadInput(f"{where}: no column {' or '.join(COLUMNS[part])} (columns found: {', '.join(map(str, line))})")
        samples.append(
            Sample(
                model=str(found["model"] or file.name.partition(".")[0]),
                condition=str(found["condition"] or ""),
                group=str(found["group"] if found["group"] is not None else number),
                said=first_line(str(found["said"] or "")),
                references=alternatives(found["references"]),
                numbers={name: number_in(line, name, where) for name in numbers},
            )
        )
    return samples


def first_line(said: str) -> str:
    """What was said up to the first newline, white space around it taken away (paper, appendix D)."""
    return said.strip().split("\n")[0].strip()


def alternatives(found: Any) -> tuple[str, ...]:
    """References: a list of them, or one text with `|` between them."""
    listed = found if isinstance(found, list | tuple) else str(found or "").split("|")
    return tuple(str(each).strip() for each in listed) or ("",)


def number_in(line: dict[str, Any], name: str, where: str) -> float:
    """A probability in a row: a number from 0 to 1, or true and false. Raises BadInput for anything else; nothing is 0 by default."""
    said = line.get(name)
    if isinstance(said, bool) or str(said).strip().lower() in ("true", "false"):
        return float(str(said).strip().lower() == "true")
    try:
        value = float(str(said))
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise BadInput(f"{where}: column '{name}' is {said!r}, expected a number from 0 to 1")
    return value
