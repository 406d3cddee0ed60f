"""Near-duplicate prompts and per-user caps (paper, section 3.2 and appendix A.2).

Pure functions on texts and groups; each returns a drop reason or None for each prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from instructgpt.records import PromptFields, Record, format_conversation


def normalize_prompt(text: str) -> str:
    """Normalize text for comparison: collapse white space, fold case."""
    return " ".join(text.split()).casefold()


def prompt_text_without_system(record: Record) -> str:
    """Return the prompt for comparison, every turn with its role, without system turns, which many prompts share."""
    assert isinstance(record, PromptFields)
    if record.messages is None:
        return record.prompt
    return format_conversation([turn for turn in record.messages if turn.role != "system"])


def get_first_user_turn(record: Record) -> str:
    """Return the user turn that a conversation begins with; conversations that share it may continue each other."""
    assert isinstance(record, PromptFields)
    return next((turn.content for turn in record.conversation if turn.role == "user"), record.prompt)


def near_duplicate_reasons(texts: Sequence[str], prefix_length: int, is_labeled: bool = False) -> list[str | None]:
    """Return why each prompt is a near-duplicate of an earlier one, or None.

    Prompts with equal first `prefix_length` characters (normalized) are duplicates; a shorter prompt only equals an
    equal one. This is an equivalence relation, so one lookup a prompt finds what comparing all pairs would. The paper
    drops prompts that share "a long common prefix" and gives no length.

    Args:
        texts: prompts; the first of a group is kept.
        is_labeled: each text has a person's work beside it, so exactly equal texts are all kept.
    """
    first_by_prefix: dict[str, str] = {}
    reasons: list[str | None] = []
    for text in map(normalize_prompt, texts):
        first_text = first_by_prefix.get(text[:prefix_length])
        if first_text is None:
            first_by_prefix[text[:prefix_length]] = text
        if first_text is None or (is_labeled and first_text == text):
            reasons.append(None)
        else:
            reasons.append(
                "the same prompt as one before"
                if first_text == text
                else f"shares {prefix_length} characters with one before"
            )
    return reasons


def get_prompt_group(record: Record, column: str = "auto") -> str | None:
    """Return "column:name" of the prompt's group, or None. "auto" takes the organization, else the user."""
    for name in ("organization", "user") if column == "auto" else (column,):
        value = getattr(record, name, None)
        if value is not None and str(value).strip():
            return f"{name}:{value}"
    return None


def user_cap_reasons(groups: Sequence[str | None], cap: int) -> list[str | None]:
    """Return why each prompt exceeds its group's cap, or None.

    Prompts without a group are not counted (paper: 200 a user).
    """
    counts: Counter[str] = Counter()
    reasons: list[str | None] = []
    for group in groups:
        if group is not None:
            counts[group] += 1
        exceeds_cap = group is not None and counts[group] > cap
        reasons.append(f"more than {cap} prompts of one {str(group).partition(':')[0]}" if exceeds_cap else None)
    return reasons
