"""Which prompts stay and which set they belong to (paper, section 3.2 and appendix A.2).

Pure functions on texts and groups; `commands` applies them to files. Each returns one reason (or None) or one split for each prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from typing import Literal

from instructgpt.errors import BadInput
from instructgpt.records import Asked, Ranking, Record

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

TRAINING = (None, "train", "training")
"""Splits whose prompts are trained on. A prompt that was not split yet may become one of them."""


def plain(text: str) -> str:
    """A text as it is compared with others: white space collapsed, case folded."""
    return " ".join(text.split()).casefold()


def prompt_text(record: Record) -> str:
    """What was asked, for comparisons. System turns are left out: a company's thousands of prompts may all begin with the same one."""
    if isinstance(record, Ranking):
        return record.prompt
    assert isinstance(record, Asked)
    if record.messages is None:
        return record.text
    return "\n\n".join(turn.content for turn in record.messages if turn.role != "system")


def prefix_reasons(texts: Sequence[str], length: int, labeled: bool = False) -> list[str | None]:
    """Why a prompt is dropped for one that was kept earlier.

    Kept is the first of all prompts whose first `length` characters are equal (as `plain` sees them); a shorter prompt only falls to an
    equal one. Sharing a prefix of at least `length` characters is an equivalence, so one look-up of the prefix for each prompt finds
    exactly what comparing all pairs would. The paper drops prompts that share "a long common prefix" and gives no length.

    Args:
        texts: the prompts, in the order in which the first is to be kept.
        length: how long a shared prefix must be, in characters.
        labeled: each text has a person's work beside it, so texts that are wholly equal are all kept.
    """
    first: dict[str, str] = {}
    reasons: list[str | None] = []
    for text in map(plain, texts):
        kept = first.get(text[:length])
        if kept is None:
            first[text[:length]] = text
        if kept is None or (labeled and kept == text):
            reasons.append(None)
        else:
            reasons.append("the same prompt as one before" if kept == text else f"shares {length} characters with one before")
    return reasons


def group_of(record: Record, column: str = "auto") -> str | None:
    """Who a prompt comes from: "column:name", or None. "auto" takes the organization where there is one, else the user."""
    for name in ("organization", "user") if column == "auto" else (column,):
        value = getattr(record, name, None)
        if value is not None and str(value).strip():
            return f"{name}:{value}"
    return None


def cap_reasons(groups: Sequence[str | None], cap: int) -> list[str | None]:
    """Why a prompt is dropped: its group has `cap` prompts before it. Prompts of nobody are not counted (paper: 200 a user)."""
    seen: Counter[str] = Counter()
    reasons: list[str | None] = []
    for group in groups:
        if group is not None:
            seen[group] += 1
        over = group is not None and seen[group] > cap
        reasons.append(f"more than {cap} prompts of one {str(group).partition(':')[0]}" if over else None)
    return reasons


def split_of(key: str, validation: float, test: float, salt: str = "") -> Split:
    """The split of a group or a text, from its hash alone: adding data moves nobody, and a larger part only gains.

    Args:
        key: the group ("user:17"), or the plain text of a prompt of nobody.
        validation: share of all keys, 0 to 1.
        test: share of all keys; the two together at most 1.
        salt: another one gives another split.
    """
    place = int.from_bytes(sha256(f"{salt}\n{key}".encode("utf-8", "replace")).digest()[:8]) / 2**64
    if place < test:
        return "test"
    return "validation" if place >= 1 - validation else "train"


def assign(groups: Sequence[str | None], texts: Sequence[str], validation: float, test: float, salt: str = "") -> list[Split | None]:
    """The split of each prompt; None where it must be left out so that neither a user nor a text crosses.

    A prompt goes where its group goes. A prompt of nobody goes where the first group with the same text goes, else by its text: so
    demonstrations and rankings without a user follow the prompts they were made for. A text that several groups wrote, and whose
    groups lie in different splits, is trained on where one of them is in training, else it stays with the first; the others are None.
    """
    plain_texts = [plain(text) for text in texts]
    splits = [split_of(group, validation, test, salt) if group else None for group in groups]
    homes: dict[str, Split] = {}
    for text, split in zip(plain_texts, splits, strict=True):
        if split is not None and (text not in homes or split == "train"):
            homes[text] = split
    for text in plain_texts:
        homes.setdefault(text, split_of(f"text:{text}", validation, test, salt))
    return [homes[text] if split in (None, homes[text]) else None for text, split in zip(plain_texts, splits, strict=True)]


def check_users(records: Sequence[Record], splits: Sequence[Split | None], column: str) -> None:
    """Make sure that no user crosses where the split went by something else than users.

    Raises:
        BadInput: a user has prompts in two splits, because some of them lack an organization or name another.
    """
    home: dict[str, Split] = {}
    for record, split in zip(records, splits, strict=True):
        user = group_of(record, "user")
        if user is not None and split is not None and home.setdefault(user, split) != split:
            name, places = user.partition(":")[2], f"{home[user]} and in {split}"
            raise BadInput(f"user '{name}' would be in {places}, being in no single '{column}': split with --group user")
