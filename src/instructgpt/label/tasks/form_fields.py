"""A task's form as the fields of a web page, and as the JSON that drafts and submissions are made of. The same mapping as form.js.

Names: `rating:<completion>`, `label:<completion>:<label>` (yes, no, na), `note:<completion>`, `tier:<completion>` (1 is best), and for
prompts `label:<label>`, `example_prompt`, `example_completion`; everything else is called as in forms.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from instructgpt.label.db.models.tasks import TaskKind

FormFields = Sequence[tuple[str, str]]
_ANSWER_VALUES: dict[str, bool | None] = {"yes": True, "no": False, "na": None}
_ANSWER_NAMES = {answer: word for word, answer in _ANSWER_VALUES.items()}


def fields_to_payload(kind: TaskKind, fields: FormFields, completions: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON of a kind of task from fields. Incomplete work gives incomplete JSON, which the form then refuses."""
    fields = [(name, value.replace("\r\n", "\n")) for name, value in fields]
    values = dict(fields)
    payload: dict[str, Any] = {
        "kind": kind,
        "note": values.get("note", ""),
        "active_ms": _parse_int(values.get("active_ms")) or 0,
    }
    if kind == "rank":
        return payload | _ranking_payload(values, completions)
    if kind == "review":
        flags = {name: _ANSWER_VALUES.get(values.get(name, "")) for name in ("personal_data", "sensitive")}
        return (
            payload
            | flags
            | {
                "use_case": values.get("use_case") or None,
                "labels": _parse_labels(values, "label:"),
                "rejected": values.get("rejected") or None,
            }
        )
    payload |= {"text": values.get("text", ""), "pasted": _parse_share(values.get("pasted"))}
    if kind == "demonstrate":
        return payload | {"meant_empty": "meant_empty" in values}
    example_prompts = [value for name, value in fields if name == "example_prompt"]
    example_completions = [value for name, value in fields if name == "example_completion"]
    examples = [
        list(pair)
        for pair in zip(example_prompts, example_completions, strict=False)
        if any(each.strip() for each in pair)
    ]
    form = values.get("form", "plain")
    return payload | {
        "form": form,
        "examples": examples if form == "few_shot" else [],
        "use_case": values.get("use_case") or None,
        "sensitive": "sensitive" in values,
    }


def _ranking_payload(values: Mapping[str, str], completions: Sequence[str]) -> dict[str, Any]:
    tiers: list[list[str]] = [[] for _ in completions]
    ratings = []
    for completion in completions:
        tier = _parse_int(values.get(f"tier:{completion}"))
        if tier is not None and 1 <= tier <= len(tiers):
            tiers[tier - 1].append(completion)
        rating, labels = _parse_int(values.get(f"rating:{completion}")), _parse_labels(values, f"label:{completion}:")
        note = values.get(f"note:{completion}", "")
        if rating is not None or labels or note:
            ratings.append({"completion": completion, "rating": rating, "labels": labels, "note": note})
    confidence = _parse_int(values.get("confidence"))
    return {
        "ratings": ratings,
        "tiers": tiers,
        "none_acceptable": "none_acceptable" in values,
        "confidence": confidence,
    }


def _parse_labels(values: Mapping[str, str], prefix: str) -> dict[str, bool | None]:
    """The labels that were answered; one that was not is not among them."""
    return {
        name[len(prefix) :]: _ANSWER_VALUES[value]
        for name, value in values.items()
        if name.startswith(prefix) and value in _ANSWER_VALUES
    }


def _parse_int(value: str | None) -> int | None:
    """A whole number, or None for anything else."""
    return int(value) if value and value.isascii() and value.isdigit() and len(value) < 16 else None


def _parse_share(value: str | None) -> float | None:
    """A share such as 0.25, or None."""
    try:
        share = float(value or "nan")
    except ValueError:
        return None
    return share if 0 <= share <= 1 else None


def payload_to_fields(payload: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Fields from JSON, the way back. A draft may hold anything: what does not fit a form is left out."""
    fields: list[tuple[str, Any]] = []
    for rating in _items_of_type(payload.get("ratings"), dict):
        completion = rating.get("completion")
        fields.append((f"rating:{completion}", rating.get("rating")))
        fields += [
            (f"label:{completion}:{name}", _ANSWER_NAMES.get(answer))
            for name, answer in _answer_items(rating.get("labels"))
        ]
        fields.append((f"note:{completion}", rating.get("note")))
    for tier, tier_completions in enumerate(_items_of_type(payload.get("tiers"), list | tuple), start=1):
        fields += [(f"tier:{completion_id}", tier) for completion_id in tier_completions]
    fields += [(f"label:{name}", _ANSWER_NAMES.get(answer)) for name, answer in _answer_items(payload.get("labels"))]
    for example_prompt, example_completion in (
        pair for pair in _items_of_type(payload.get("examples"), list | tuple) if len(pair) == 2
    ):
        fields += [("example_prompt", example_prompt or " "), ("example_completion", example_completion or " ")]
    fields += [
        (name, payload.get(name)) for name in ("note", "text", "form", "use_case", "rejected", "confidence", "pasted")
    ]
    fields += [(name, "yes") for name in ("none_acceptable", "meant_empty") if payload.get(name) is True]
    is_review = payload.get("kind") == "review"
    for name in ("personal_data", "sensitive"):
        answer = payload.get(name)
        if answer is True or (is_review and answer is False):
            fields.append((name, _ANSWER_NAMES[answer]))
    return [(name, str(value)) for name, value in fields if value is not None and value != ""]


def _items_of_type(value: Any, item_type: Any) -> Iterable[Any]:
    """The elements of a list that are of a kind."""
    return [each for each in value if isinstance(each, item_type)] if isinstance(value, list | tuple) else []


def _answer_items(value: Any) -> list[tuple[str, Any]]:
    """The items of a mapping whose answers are yes, no or not applicable."""
    return (
        [(name, answer) for name, answer in value.items() if answer in (True, False, None)]
        if isinstance(value, dict)
        else []
    )
