"""Which set a prompt belongs to (paper, section 3.2 and appendix A.2): decided by hashes, so that adding data never moves one.

`held_out` is what a stage does with one file that nobody has split; the others are `data split`, by user.
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
"""Splits whose prompts are trained on. A prompt that was not split yet may become one of them."""


def is_heldout(text: str, divisor: int = 10) -> bool:
    """Whether a prompt belongs to the held-out tenth: the first four bytes of its sha256, as a number, divide by ten."""
    return int.from_bytes(sha256(text.encode("utf-8", "surrogatepass")).digest()[:4], "big") % divisor == 0


def hash_split(key: str, validation: float, test: float, salt: str = "") -> Split:
    """The split of a group or a text, from its hash alone: adding data moves nobody, and a larger part only gains.

    Args:
        key: the group ("user:17"), or the plain text of a prompt of nobody.
        validation: share of all keys, 0 to 1.
        test: share of all keys; the two together at most 1.
        salt: another one gives another split.
    """
    fraction = int.from_bytes(sha256(f"{salt}\n{key}".encode("utf-8", "replace")).digest()[:8]) / 2**64
    if fraction < test:
        return "test"
    return "validation" if fraction >= 1 - validation else "train"


def assign_splits(
    groups: Sequence[str | None], texts: Sequence[str], validation: float, test: float, salt: str = ""
) -> list[Split | None]:
    """The split of each prompt; None where it must be left out so that neither a user nor a text crosses.

    A prompt goes where its group goes. A prompt of nobody goes where the first group with the same text goes, else by its text: so
    demonstrations and rankings without a user follow the prompts they were made for. A text that several groups wrote, and whose
    groups lie in different splits, is trained on where one of them is in training, else it stays with the first; the others are None.
    """
    normalized_texts = [normalize_prompt(text) for text in texts]
    splits = [hash_split(group, validation, test, salt) if group else None for group in groups]
    split_by_text: dict[str, Split] = {}
    for text, split in zip(normalized_texts, splits, strict=True):
        if split is not None and (text not in split_by_text or split == "train"):
            split_by_text[text] = split
    for text in normalized_texts:
        split_by_text.setdefault(text, hash_split(f"text:{text}", validation, test, salt))
    return [
        split_by_text[text] if split in (None, split_by_text[text]) else None
        for text, split in zip(normalized_texts, splits, strict=True)
    ]


def check_users_in_single_split(records: Sequence[Record], splits: Sequence[Split | None], column: str) -> None:
    """Make sure that no user crosses where the split went by something else than users.

    Raises:
        BadInput: a user has prompts in two splits, because some of them lack an organization or name another.
    """
    split_by_user: dict[str, Split] = {}
    for record, split in zip(records, splits, strict=True):
        user = get_prompt_group(record, "user")
        if user is not None and split is not None and split_by_user.setdefault(user, split) != split:
            name, conflict = user.partition(":")[2], f"{split_by_user[user]} and in {split}"
            raise InputError(
                f"user '{name}' would be in {conflict}, being in no single '{column}': split with --group user"
            )
