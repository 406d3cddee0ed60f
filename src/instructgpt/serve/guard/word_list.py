"""A word list as a scorer: how many of its entries a text has."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from instructgpt.errors import InputError, one_line
from instructgpt.run.lineage import content_hash

_CHUNK = 500
"""Entries in one regular expression."""


def fold_text(text: str) -> str:
    """Return a text as it is compared: compatibility forms, no invisible characters, lower case, single spaces."""
    compatible = unicodedata.normalize("NFKC", text)
    visible = "".join(letter for letter in compatible if unicodedata.category(letter) != "Cf")
    return " ".join(visible.casefold().split())


class WordList:
    """Words and phrases, an entry a line. `#` begins a comment; an entry ending with * is the beginning of a word."""

    def __init__(self, entries: Sequence[str], identity: str) -> None:
        self.identity = identity
        folded = sorted({fold_text(entry) for entry in entries}, key=len, reverse=True)
        chunks = [folded[start : start + _CHUNK] for start in range(0, len(folded), _CHUNK)]
        self._patterns = [re.compile("|".join(map(_entry_pattern, chunk))) for chunk in chunks]

    @classmethod
    def load(cls, path: Path) -> WordList:
        """Read a word list. Raises InputError where there is none, or it has no entry."""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"words:{path}: cannot be read ({one_line(error, 150)})") from error
        entries = [entry for line in lines if fold_text((entry := line.partition("#")[0]).replace("*", ""))]
        if not entries:
            raise InputError(f"words:{path}: no entry; write a word or phrase a line")
        return cls(entries, f"word list sha256:{content_hash(path)[:16]}")

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """Return how many different passages of each text are entries."""
        return [float(self._count(fold_text(text))) for text in texts]

    def _count(self, text: str) -> int:
        return len({match.group() for pattern in self._patterns for match in pattern.finditer(text)})


def _entry_pattern(entry: str) -> str:
    is_beginning = entry.endswith("*")
    words = entry.removesuffix("*").split()
    start = "" if _is_unspaced(words[0][0]) else r"(?<!\w)"
    end = r"\w*" if is_beginning else "" if _is_unspaced(words[-1][-1]) else r"(?!\w)"
    return start + " ".join(map(re.escape, words)) + end


def _is_unspaced(letter: str) -> bool:
    """Return whether a letter belongs to a script that writes no spaces between words."""
    return unicodedata.name(letter, "").startswith(("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER"))
