"""Train the refusal detector on answers that people labeled, and measure it on held-out models and prompts.

instructgpt judge refusal --data labeled_answers.jsonl --out runs/refusal
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator
from rich.table import Table

from instructgpt.data.refusal_labels import NO_CLASS, REFUSAL_CLASSES, parse_refusal_class
from instructgpt.errors import InputError
from instructgpt.evaluate.configs import RefusalConfig
from instructgpt.evaluate.refusal.detector import (
    fit_refusal_detector,
    fit_refusal_temperature,
    refusal_features,
    with_temperature,
)
from instructgpt.evaluate.refusal.matcher import match_refusal
from instructgpt.evaluate.refusal.validation import (
    PROMPT_FOLDS,
    calibrate_by_fold,
    calibration_metrics,
    cross_validate_logits,
    label_metrics,
    prompt_folds,
)
from instructgpt.records import Record, SkippedLines, read_all_records
from instructgpt.run.directory import RunDirectory, console
from instructgpt.run.lineage import named_inputs

_Ints = NDArray[np.int64]
_OTHER_LABEL_SUFFIX = "_label"
"""Columns such as `gpt4_label` hold labels of others, which are compared with people's."""


class _LabeledAnswer(Record):
    prompt: str
    completion: str
    model: str
    label: str

    @field_validator("label")
    @classmethod
    def _check_label(cls, label: str) -> str:
        if parse_refusal_class(label) == NO_CLASS:
            raise ValueError(f"'{label}' is no class; expected {', '.join(REFUSAL_CLASSES)}")
        return label


def main(config: RefusalConfig) -> Path:
    """Cross-validate by model and by prompt, train on all answers, and write the detector. Returns its directory."""
    run = RunDirectory.open(config, named_inputs(data=config.data))
    if run.is_finished:
        run.info(f"already finished: {config.out}")
        return config.out
    skipped = SkippedLines(config.skip_bad)
    rows = read_all_records(_LabeledAnswer, config.data, skipped)
    classes = np.array([parse_refusal_class(row.label) for row in rows], np.int64)
    models, model_keys = np.unique([row.model for row in rows], return_inverse=True)
    folds = prompt_folds([row.prompt for row in rows])
    check_splits(classes, model_keys, folds, models.tolist())
    run.create()
    ngrams, cues = refusal_features([row.completion for row in rows])
    logits: dict[str, Any] = {}
    groups = {"models": (model_keys,), "prompts": (folds,), "models_and_prompts": (model_keys, folds)}
    for step, (name, keys) in enumerate(groups.items(), start=1):
        logits[name] = cross_validate_logits(ngrams, cues, classes, config.l2, *keys)
        run.log(step, len(groups), {f"accuracy/heldout_{name}": float((logits[name].argmax(1) == classes).mean())})
    validation = measure_validation(rows, classes, model_keys, folds, logits)
    _print_validation(validation)
    detector = fit_refusal_detector(ngrams, cues, classes, config.l2)
    detector = with_temperature(detector, fit_refusal_temperature(logits["models"], classes))
    counts = {name: int((classes == index).sum()) for index, name in enumerate(REFUSAL_CLASSES)}
    skipped_counts = {"bad lines": len(skipped.reasons) if skipped else 0}
    return run.finish(
        detector.save, validation=validation, answers=counts, models=models.tolist(), left_out=skipped_counts
    )


def check_splits(classes: _Ints, models: _Ints, folds: _Ints, names: Sequence[str]) -> None:
    """Raise InputError if some detector of the cross-validation would be trained without a class."""
    if len(names) < 2:
        raise InputError(f"--data: answers of {len(names)} model are too few; a model is held out, so give 2 or more")
    if len(np.unique(folds)) < PROMPT_FOLDS:
        raise InputError(f"--data: {len(classes)} answers have too few prompts for {PROMPT_FOLDS} folds")
    for model in range(len(names)):
        for fold in range(PROMPT_FOLDS):
            missing = set(range(len(REFUSAL_CLASSES))) - set(classes[(models != model) & (folds != fold)].tolist())
            if missing:
                absent = ", ".join(REFUSAL_CLASSES[index] for index in sorted(missing))
                where = f"without the model {names[model]} and a fifth of the prompts"
                raise InputError(f"--data: {len(classes)} answers are too few: {where}, none is left of {absent}")


def measure_validation(
    rows: Sequence[_LabeledAnswer], classes: _Ints, model_keys: _Ints, folds: _Ints, logits: dict[str, Any]
) -> dict[str, Any]:
    """Return the metrics of the detector on each split, of the string matcher, and of other labels in the data.

    Those of the detector have `calibration`; all have `by_model`.
    """
    prompts = [row.prompt for row in rows]
    fold_keys = {"models": model_keys, "prompts": folds, "models_and_prompts": model_keys * PROMPT_FOLDS + folds}
    predictions = {f"detector, held-out {name}": value.argmax(axis=1) for name, value in logits.items()}
    matched = [REFUSAL_CLASSES.index(match_refusal(row.completion)) for row in rows]
    predictions["string matcher"] = np.array(matched, np.int64)
    for column in _other_label_columns(rows):
        labels = [parse_refusal_class((row.model_extra or {}).get(column)) for row in rows]
        predictions[column] = np.array(labels, np.int64)
    validation: dict[str, Any] = {}
    for name, predicted in predictions.items():
        validation[name] = label_metrics(predicted, classes, prompts)
        validation[name]["by_model"] = {}
        for key, model in sorted({(int(key), row.model) for key, row in zip(model_keys, rows, strict=True)}):
            of_model = np.flatnonzero(model_keys == key)
            model_prompts = [prompts[index] for index in of_model]
            validation[name]["by_model"][model] = label_metrics(predicted[of_model], classes[of_model], model_prompts)
    for name, value in logits.items():
        probabilities = calibrate_by_fold(value, classes, fold_keys[name])
        validation[f"detector, held-out {name}"]["calibration"] = calibration_metrics(probabilities, classes)
    return validation


def _other_label_columns(rows: Sequence[_LabeledAnswer]) -> list[str]:
    names = dict.fromkeys(name for row in rows for name in row.model_extra or {})
    return [name for name in names if name.endswith(_OTHER_LABEL_SUFFIX)]


def _print_validation(validation: dict[str, Any]) -> None:
    metrics = ("accuracy", *(f"f1_{name}" for name in REFUSAL_CLASSES))
    table = Table("against people's labels", *(name.replace("_", " ") for name in metrics), box=None, pad_edge=False)
    for name, row in validation.items():
        cells = ("–" if (cell := row[metric])["value"] is None else _format_cell(cell) for metric in metrics)
        table.add_row(name.replace("_", " "), *cells)
    console.print(table)


def _format_cell(cell: dict[str, float | None]) -> str:
    if cell["low"] is None or cell["high"] is None:
        return f"{cell['value']:.3f}"
    return f"{cell['value']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]"
