"""Map a task's form between web form fields and the JSON of drafts and submissions.

Fields: `rating:<completion>`, `label:<completion>:<label>` (yes, no, na), `note:<completion>`, `tier:<completion>`
(1 is best), `answer:<label>` of the whole task, for prompts `label:<label>`, `example_prompt`, `example_completion`;
the others are named as in forms.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from instructgpt.label.vocabulary import TaskKind

FormFields = Sequence[tuple[str, str]]
_ANSWER_VALUES: dict[str, bool | None] = {"yes": True, "no": False, "na": None}
_USE = "use"
"""The field `rejected` of a prompt to be used, which is null in JSON; a draft without the key is undecided."""
_ANSWER_NAMES = {answer: word for word, answer in _ANSWER_VALUES.items()}


def fields_to_payload(kind: TaskKind, fields: FormFields, completions: Sequence[str] = ()) -> dict[str, Any]:
    """Convert fields to JSON. Incomplete fields give incomplete JSON, which the form then rejects."""
    fields = [(name, value.replace("\r\n", "\n")) for name, value in fields]
    values = dict(fields)
    active_ms = _parse_int(values.get("active_ms")) or 0
    payload: dict[str, Any] = {"kind": kind, "note": values.get("note", ""), "active_ms": active_ms}
    if kind == "rank":
        return payload | _ranking_payload(values, completions)
    if kind == "review":
        flags = {name: _ANSWER_VALUES.get(values.get(name, "")) for name in ("personal_data", "sensitive")}
        verdict = values.get("rejected")
        rejected = {"rejected": None if verdict == _USE else verdict} if verdict else {}
        review = flags | {"use_case": values.get("use_case") or None, "labels": _parse_labels(values, "label:")}
        return payload | review | rejected
    payload |= {"text": values.get("text", ""), "pasted": _parse_share(values.get("pasted"))}
    if kind == "demonstrate":
        return payload | {"meant_empty": "meant_empty" in values}
    example_prompts = [value for name, value in fields if name == "example_prompt"]
    example_completions = [value for name, value in fields if name == "example_completion"]
    pairs = zip(example_prompts, example_completions, strict=False)
    examples = [[prompt, completion] for prompt, completion in pairs if prompt.strip() or completion.strip()]
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
    overall = {"none_acceptable": "none_acceptable" in values, "confidence": _parse_int(values.get("confidence"))}
    answers = _parse_labels(values, "answer:")
    return {"ratings": ratings, "tiers": tiers, "answers": answers, **overall}


def _parse_labels(values: Mapping[str, str], prefix: str) -> dict[str, bool | None]:
    return {
        name[len(prefix) :]: _ANSWER_VALUES[value]
        for name, value in values.items()
        if name.startswith(prefix) and value in _ANSWER_VALUES
    }


def _parse_int(value: str | None) -> int | None:
    """Parse a non-negative integer; None for anything else."""
    return int(value) if value and value.isascii() and value.isdigit() and len(value) < 16 else None


def _parse_share(value: str | None) -> float | None:
    """Parse a number from 0 to 1; None for anything else."""
    try:
        share = float(value or "nan")
    except ValueError:
        return None
    return share if 0 <= share <= 1 else None


def payload_to_fields(payload: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Convert JSON to fields. A draft may hold anything: values that do not fit are left out."""
    fields: list[tuple[str, Any]] = []
    for rating in _items_of_type(payload.get("ratings"), dict):
        completion = rating.get("completion")
        fields.append((f"rating:{completion}", rating.get("rating")))
        answers = _answer_items(rating.get("labels"))
        fields += [(f"label:{completion}:{name}", _ANSWER_NAMES.get(answer)) for name, answer in answers]
        fields.append((f"note:{completion}", rating.get("note")))
    fields += [(f"answer:{name}", _ANSWER_NAMES.get(answer)) for name, answer in _answer_items(payload.get("answers"))]
    for tier, tier_completions in enumerate(_items_of_type(payload.get("tiers"), list | tuple), start=1):
        fields += [(f"tier:{completion_id}", tier) for completion_id in tier_completions]
    fields += [(f"label:{name}", _ANSWER_NAMES.get(answer)) for name, answer in _answer_items(payload.get("labels"))]
    for example in _items_of_type(payload.get("examples"), list | tuple):
        if len(example) == 2:
            fields += [("example_prompt", example[0] or " "), ("example_completion", example[1] or " ")]
    names = ("note", "text", "form", "use_case", "rejected", "confidence", "pasted")
    fields += [(name, payload.get(name)) for name in names]
    fields += [(name, "yes") for name in ("none_acceptable", "meant_empty") if payload.get(name) is True]
    is_review = payload.get("kind") == "review"
    if is_review and "rejected" in payload and payload["rejected"] is None:
        fields.append(("rejected", _USE))
    for name in ("personal_data", "sensitive"):
        answer = payload.get(name)
        if answer is True or (is_review and answer is False):
            fields.append((name, _ANSWER_NAMES[answer]))
    return [(name, str(value)) for name, value in fields if value is not None and value != ""]


def _items_of_type(value: Any, item_type: Any) -> Iterable[Any]:
    return [item for item in value if isinstance(item, item_type)] if isinstance(value, list | tuple) else []


def _answer_items(value: Any) -> list[tuple[str, Any]]:
    """Return the items of a mapping that are yes, no or not applicable."""
    items = value.items() if isinstance(value, dict) else ()
    return [(name, answer) for name, answer in items if answer in (True, False, None)]
