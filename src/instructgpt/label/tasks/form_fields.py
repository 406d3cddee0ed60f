"""A task's form as the fields of a web page, and as the JSON that drafts and submissions are made of. The same mapping as form.js.

Names: `rating:<completion>`, `label:<completion>:<label>` (yes, no, na), `note:<completion>`, `tier:<completion>` (1 is best), and for
prompts `label:<label>`, `example_prompt`, `example_completion`; everything else is called as in forms.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from instructgpt.label.db.models.tasks import Kind

Fields = Sequence[tuple[str, str]]
ANSWERS: dict[str, bool | None] = {"yes": True, "no": False, "na": None}
WORDS = {answer: word for word, answer in ANSWERS.items()}


def payload_of(kind: Kind, fields: Fields, completions: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON of a kind of task from fields. Incomplete work gives incomplete JSON, which the form then refuses."""
    fields = [(name, value.replace("\r\n", "\n")) for name, value in fields]
    one = dict(fields)
    payload: dict[str, Any] = {"kind": kind, "note": one.get("note", ""), "active_ms": whole(one.get("active_ms")) or 0}
    if kind == "rank":
        return payload | _ranking(one, completions)
    if kind == "review":
        asked = {name: ANSWERS.get(one.get(name, "")) for name in ("personal_data", "sensitive")}
        return payload | asked | {
            "use_case": one.get("use_case") or None, "labels": answers(one, "label:"), "rejected": one.get("rejected") or None,
        }  # fmt: skip
    payload |= {"text": one.get("text", ""), "pasted": part(one.get("pasted"))}
    if kind == "demonstrate":
        return payload | {"meant_empty": "meant_empty" in one}
    asks = [value for name, value in fields if name == "example_prompt"]
    gets = [value for name, value in fields if name == "example_completion"]
    examples = [list(pair) for pair in zip(asks, gets, strict=False) if any(each.strip() for each in pair)]
    form = one.get("form", "plain")
    return payload | {
        "form": form, "examples": examples if form == "few_shot" else [], "use_case": one.get("use_case") or None,
        "sensitive": "sensitive" in one,
    }  # fmt: skip


def _ranking(one: Mapping[str, str], completions: Sequence[str]) -> dict[str, Any]:
    tiers: list[list[str]] = [[] for _ in completions]
    ratings = []
    for completion in completions:
        tier = whole(one.get(f"tier:{completion}"))
        if tier is not None and 1 <= tier <= len(tiers):
            tiers[tier - 1].append(completion)
        rating, labels = whole(one.get(f"rating:{completion}")), answers(one, f"label:{completion}:")
        note = one.get(f"note:{completion}", "")
        if rating is not None or labels or note:
            ratings.append({"completion": completion, "rating": rating, "labels": labels, "note": note})
    confidence = whole(one.get("confidence"))
    return {"ratings": ratings, "tiers": tiers, "none_acceptable": "none_acceptable" in one, "confidence": confidence}


def answers(one: Mapping[str, str], prefix: str) -> dict[str, bool | None]:
    """The labels that were answered; one that was not is not among them."""
    return {name[len(prefix) :]: ANSWERS[value] for name, value in one.items() if name.startswith(prefix) and value in ANSWERS}


def whole(value: str | None) -> int | None:
    """A whole number, or None for anything else."""
    return int(value) if value and value.isascii() and value.isdigit() and len(value) < 16 else None


def part(value: str | None) -> float | None:
    """A share such as 0.25, or None."""
    try:
        number = float(value or "nan")
    except ValueError:
        return None
    return number if 0 <= number <= 1 else None


def fields_of(payload: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Fields from JSON, the way back. A draft may hold anything: what does not fit a form is left out."""
    fields: list[tuple[str, Any]] = []
    for rated in listed(payload.get("ratings"), dict):
        completion = rated.get("completion")
        fields.append((f"rating:{completion}", rated.get("rating")))
        fields += [(f"label:{completion}:{name}", WORDS.get(answer)) for name, answer in mapped(rated.get("labels"))]
        fields.append((f"note:{completion}", rated.get("note")))
    for number, cards in enumerate(listed(payload.get("tiers"), list | tuple), start=1):
        fields += [(f"tier:{card}", number) for card in cards]
    fields += [(f"label:{name}", WORDS.get(answer)) for name, answer in mapped(payload.get("labels"))]
    for ask, get in (pair for pair in listed(payload.get("examples"), list | tuple) if len(pair) == 2):
        fields += [("example_prompt", ask or " "), ("example_completion", get or " ")]
    fields += [(name, payload.get(name)) for name in ("note", "text", "form", "use_case", "rejected", "confidence", "pasted")]
    fields += [(name, "yes") for name in ("none_acceptable", "meant_empty") if payload.get(name) is True]
    review = payload.get("kind") == "review"
    for name in ("personal_data", "sensitive"):
        answer = payload.get(name)
        if answer is True or (review and answer is False):
            fields.append((name, WORDS[answer]))
    return [(name, str(value)) for name, value in fields if value is not None and value != ""]


def listed(value: Any, kind: Any) -> Iterable[Any]:
    """The elements of a list that are of a kind."""
    return [each for each in value if isinstance(each, kind)] if isinstance(value, list | tuple) else []


def mapped(value: Any) -> list[tuple[str, Any]]:
    """The items of a mapping whose answers are yes, no or not applicable."""
    return [(name, answer) for name, answer in value.items() if answer in (True, False, None)] if isinstance(value, dict) else []
