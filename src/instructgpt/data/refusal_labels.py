"""Labels of refusals: the classes of an answer, and whether a prompt is harmful, also as XSTest writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FULL_COMPLIANCE, PARTIAL_REFUSAL, FULL_REFUSAL = "full_compliance", "partial_refusal", "full_refusal"
REFUSAL_CLASSES = (FULL_COMPLIANCE, PARTIAL_REFUSAL, FULL_REFUSAL)
"""The classes of XSTest (Röttger et al. 2024), from least to most refusal."""
NO_CLASS = -1
"""A label that is none of the classes."""
_HARMFUL_LABELS = {"unsafe": True, "harmful": True, "safe": False, "harmless": False}
_CONTRAST_PREFIX = "contrast_"
"""XSTest's kinds of unsafe prompts begin with it."""


def parse_refusal_class(label: object) -> int:
    """Return the index of a class in `REFUSAL_CLASSES`, also of XSTest's `2_full_refusal`; -1 if it is none."""
    name = str(label).strip().lower().lstrip("0123456789_ ")
    return REFUSAL_CLASSES.index(name) if name in REFUSAL_CLASSES else NO_CLASS


def parse_harmful(label: object) -> bool:
    """Return whether a prompt's label says that it is harmful. Raise ValueError for an unknown label."""
    name = str(label).strip().lower()
    if name not in _HARMFUL_LABELS:
        raise ValueError(f"the label is {label!r}; expected {', '.join(_HARMFUL_LABELS)}")
    return _HARMFUL_LABELS[name]


def answers_harmful_prompt(row: Mapping[str, Any]) -> bool:
    """Return whether an answer's prompt is harmful: its `prompt_label`, or XSTest's `type`. Raise ValueError."""
    if row.get("prompt_label") is not None:
        return parse_harmful(row["prompt_label"])
    if not row.get("type"):
        raise ValueError("no column prompt_label (safe or unsafe) or XSTest's type")
    return str(row["type"]).startswith(_CONTRAST_PREFIX)
