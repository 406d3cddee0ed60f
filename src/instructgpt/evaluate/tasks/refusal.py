"""Refusals of harmful prompts, and of safe prompts that look harmful (XSTest, Röttger et al. 2024).

A model answers each prompt in its own prompt format, greedily. `--detector` names who classifies the answers: a
directory of `instructgpt judge refusal`, or `strings`, the string matcher.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from instructgpt.data.refusal_labels import (
    NO_CLASS,
    REFUSAL_CLASSES,
    answers_harmful_prompt,
    parse_harmful,
    parse_refusal_class,
)
from instructgpt.errors import InputError
from instructgpt.evaluate.metrics.refusal import REFUSAL_EVALUATION, ClassifiedAnswer, measure_refusals
from instructgpt.evaluate.refusal.detector import RefusalDetector
from instructgpt.evaluate.refusal.matcher import match_refusal
from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, EvalTask, QuestionReply, subsample
from instructgpt.evaluate.tasks.loading import load_task_rows
from instructgpt.results import ResultRow, with_judge

STRING_MATCHER = "strings"
_MAX_TOKENS = 256


class RefusalClassifier(Protocol):
    @property
    def identity(self) -> str: ...

    def classify(self, answers: Sequence[str]) -> list[str | None]:
        """Return the class of each answer, None for one without words."""
        ...


class _StringMatcher:
    identity = "string matcher 1"

    def classify(self, answers: Sequence[str]) -> list[str | None]:
        return [match_refusal(answer) if any(map(str.isalnum, answer)) else None for answer in answers]


def require_detector(settings: EvalSettings) -> RefusalClassifier:
    """Load the detector. Raise InputError if none was named or it does not load."""
    if settings.detector is None:
        expected = f"a directory made by 'instructgpt judge refusal', or {STRING_MATCHER} (a string matcher)"
        raise InputError(f"evaluate: {REFUSAL_EVALUATION} needs --detector: {expected}")
    return _StringMatcher() if settings.detector == STRING_MATCHER else RefusalDetector.load(Path(settings.detector))


def load(file: Path, settings: EvalSettings) -> list[EvalQuestion]:
    """Return each prompt, to be answered in the model's own prompt format."""
    rows = load_task_rows(file, "prompt", "label", skip_bad=settings.skip_bad, check_row=_check_prompt)
    for is_harmful, name in ((True, "harmful"), (False, "safe")):
        if all(parse_harmful(row["label"]) != is_harmful for row in rows):
            raise InputError(f"{file}: no {name} prompt; refusals mean something only beside the other kind's")
    questions = []
    for index, row in enumerate(subsample(rows, settings)):
        target = {"harmful": parse_harmful(row["label"]), "kind": str(row.get("type") or "")}
        prompt = str(row["prompt"])
        question = EvalQuestion(
            f"{index} {prompt}", "", prompt, max_tokens=_MAX_TOKENS, stop=None, is_prompt=True, target=target
        )
        questions.append(question)
    return questions


def _check_prompt(row: dict[str, Any]) -> None:
    parse_harmful(row["label"])


def measure(replies: Sequence[QuestionReply], settings: EvalSettings) -> list[ResultRow]:
    """Return the rows of `measure_refusals`, as the detector classifies."""
    detector = require_detector(settings)
    classes = detector.classify([reply.said or "" for _, reply in replies])
    answers = [
        ClassifiedAnswer(model=reply.model, prompt=question.text, refusal=name, **question.target)
        for (question, reply), name in zip(replies, classes, strict=True)
    ]
    return with_judge(measure_refusals(answers), detector.identity)


def measure_refusal_samples(files: Sequence[Path], settings: EvalSettings) -> list[ResultRow]:
    """Return the rows of existing answers: `model`, `prompt`, `completion`, and whether the prompt is harmful.

    That is `prompt_label` (safe or unsafe), or XSTest's `type`. Without a detector the classes are people's, `label`.
    """
    detector = None if settings.detector is None else require_detector(settings)
    rows = [
        row
        for file in files
        for row in load_task_rows(
            file,
            "model|model_type",
            "prompt|context",
            *(() if detector else ("label",)),
            skip_bad=settings.skip_bad,
            check_row=_check_sample if detector else _check_labeled_sample,
        )
    ]
    if detector:
        classes = detector.classify([_completion(row) for row in rows])
    else:
        classes = [REFUSAL_CLASSES[parse_refusal_class(row["label"])] for row in rows]
    answers = [
        ClassifiedAnswer(
            model=str(row["model"]),
            prompt=str(row["prompt"]),
            harmful=answers_harmful_prompt(row),
            kind=str(row.get("type") or ""),
            refusal=name,
        )
        for row, name in zip(rows, classes, strict=True)
    ]
    return with_judge(measure_refusals(answers), detector.identity if detector else "people")


def _completion(row: dict[str, Any]) -> str:
    return str(next((row[name] for name in ("completion", "sample") if row.get(name) is not None), ""))


def _check_sample(row: dict[str, Any]) -> None:
    if "completion" not in row and "sample" not in row:
        raise ValueError(f"no column completion or sample (columns found: {', '.join(map(str, row))})")
    answers_harmful_prompt(row)


def _check_labeled_sample(row: dict[str, Any]) -> None:
    answers_harmful_prompt(row)
    if parse_refusal_class(row["label"]) == NO_CLASS:
        raise ValueError(f"the label is {row['label']!r}; expected {', '.join(REFUSAL_CLASSES)}")


_DESCRIPTION = "refusals of harmful and of safe prompts (needs --detector)"
TASK = EvalTask(REFUSAL_EVALUATION, _DESCRIPTION, "xstest_prompts.csv", load, measure)
