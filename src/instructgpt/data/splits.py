"""Splits by hash (paper, section 3.2 and appendix A.2), so that adding data never moves a prompt.

`is_heldout` splits one unsplit file inside a stage; the rest implements `data split` by user.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Literal

from instructgpt.data.dedup import get_prompt_group, normalize_prompt
from instructgpt.errors import InputError
from instructgpt.records import Record

Split = Literal["train", "validation", "test"]
SPLIT_NAMES: tuple[Split, ...] = ("train", "validation", "test")

TRAINING_SPLITS = (None, "train", "training")
"""Split names that are trained on; None is not split yet."""


def is_heldout(text: str, divisor: int = 10) -> bool:
    """Return whether a prompt is held out: the first four bytes of its sha256 are divisible by `divisor`."""
    return int.from_bytes(sha256(text.encode("utf-8", "surrogatepass")).digest()[:4], "big") % divisor == 0


def hash_split(key: str, validation: float, test: float, salt: str = "") -> Split:
    """Return the split of a group or text from its hash; enlarging a share only adds keys to it.

    Args:
        key: the group ("user:17"), or the normalized text of a prompt without one.
        validation: share of keys, 0 to 1.
        test: share of keys; both together at most 1.
        salt: another salt gives another split.
    """
    fraction = int.from_bytes(sha256(f"{salt}\n{key}".encode("utf-8", "replace")).digest()[:8]) / 2**64
    if fraction < test:
        return "test"
    return "validation" if fraction >= 1 - validation else "train"


def assign_splits(
    groups: Sequence[str | None],
    texts: Sequence[str],
    validation: float,
    test: float,
    salt: str = "",
    first_turns: Sequence[str] | None = None,
) -> list[Split | None]:
    """Return the split of each prompt; None where it must be left out so that no user and no text crosses.

    A prompt follows its group. A prompt without a group follows the first group with the same text, else the first
    group with the same first turn, else its first turn, so demonstrations and rankings without a user follow their
    prompts, and a conversation follows its continuations. A text of several groups in different splits is trained on in
    one training group, else stays with the first group; the others are None.

    Args:
        groups: the group of each prompt, or None.
        texts: the whole prompts, every turn.
        validation: share of keys, 0 to 1.
        test: share of keys; both together at most 1.
        salt: another salt gives another split.
        first_turns: the first user turns; the texts if not set.
    """
    normalized_texts = [normalize_prompt(text) for text in texts]
    normalized_turns = normalized_texts if first_turns is None else [normalize_prompt(text) for text in first_turns]
    splits = [hash_split(group, validation, test, salt) if group else None for group in groups]
    split_by_text: dict[str, Split] = {}
    split_by_first_turn: dict[str, Split] = {}
    for text, first_turn, split in zip(normalized_texts, normalized_turns, splits, strict=True):
        for split_by_key, key in ((split_by_text, text), (split_by_first_turn, first_turn)):
            if split is not None and (key not in split_by_key or split == "train"):
                split_by_key[key] = split
    for text, first_turn in zip(normalized_texts, normalized_turns, strict=True):
        if first_turn not in split_by_first_turn:
            split_by_first_turn[first_turn] = hash_split(f"text:{first_turn}", validation, test, salt)
        split_by_text.setdefault(text, split_by_first_turn[first_turn])
    return [
        split_by_text[text] if split in (None, split_by_text[text]) else None
        for text, split in zip(normalized_texts, splits, strict=True)
    ]


def check_users_in_single_split(records: Sequence[Record], splits: Sequence[Split | None], column: str) -> None:
    """Check that no user crosses splits when another column was used for splitting.

    Raises:
        InputError: a user has prompts in two splits, because some lack an organization or name another.
    """
    split_by_user: dict[str, Split] = {}
    for record, split in zip(records, splits, strict=True):
        user = get_prompt_group(record, "user")
        if user is not None and split is not None and split_by_user.setdefault(user, split) != split:
            name, conflict = user.partition(":")[2], f"{split_by_user[user]} and in {split}"
            raise InputError(
                f"user '{name}' would be in {conflict}, being in no single '{column}': split with --group user"
            )
