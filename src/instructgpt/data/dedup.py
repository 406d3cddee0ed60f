"""Which prompts stay: near-copies and the many prompts of one user go (paper, section 3.2 and appendix A.2).

Pure functions on texts and groups; `commands` applies them to files. Each returns one reason, or None, for each prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from instructgpt.records import PromptFields, Ranking, Record


def normalize_prompt(text: str) -> str:
    """A text as it is compared with others: white space collapsed, case folded."""
    return " ".join(text.split()).casefold()


def prompt_text_without_system(record: Record) -> str:
    """What was asked, for comparisons. System turns are left out: a company's thousands of prompts may all begin with the same one."""
    if isinstance(record, Ranking):
        return record.prompt
    assert isinstance(record, PromptFields)
    if record.messages is None:
        return record.text
    return "\n\n".join(turn.content for turn in record.messages if turn.role != "system")


def near_duplicate_reasons(texts: Sequence[str], prefix_length: int, is_labeled: bool = False) -> list[str | None]:
    """Why a prompt is dropped for one that was kept earlier.

    Kept is the first of all prompts whose first `length` characters are equal (as `plain` sees them); a shorter prompt only falls to an
    equal one. Sharing a prefix of at least `length` characters is an equivalence, so one look-up of the prefix for each prompt finds
    exactly what comparing all pairs would. The paper drops prompts that share "a long common prefix" and gives no length.

    Args:
        texts: the prompts, in the order in which the first is to be kept.
        length: how long a shared prefix must be, in characters.
        labeled: each text has a person's work beside it, so texts that are wholly equal are all kept.
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
    """Who a prompt comes from: "column:name", or None. "auto" takes the organization where there is one, else the user."""
    for name in ("organization", "user") if column == "auto" else (column,):
        value = getattr(record, name, None)
        if value is not None and str(value).strip():
            return f"{name}:{value}"
    return None


def user_cap_reasons(groups: Sequence[str | None], cap: int) -> list[str | None]:
    """Why a prompt is dropped: its group has `cap` prompts before it. Prompts of nobody are not counted (paper: 200 a user)."""
    counts: Counter[str] = Counter()
    reasons: list[str | None] = []
    for group in groups:
        if group is not None:
            counts[group] += 1
        exceeds_cap = group is not None and counts[group] > cap
        reasons.append(f"more than {cap} prompts of one {str(group).partition(':')[0]}" if exceeds_cap else None)
    return reasons
