"""The catalogue of sentences: one YAML file a language under `locales/`. A further language is one further file.

A sentence has a dotted key and may have `{slots}`. A test holds that all languages have the same keys and slots, and that every key
a template or a problem names exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "locales"
DEFAULT = "en"


@dataclass(frozen=True)
class Words:
    """One language. Called with a key, it gives the sentence."""

    language: str
    direction: str
    sentences: dict[str, str]

    def __call__(self, key: str, **values: Any) -> str:
        """The sentence of a key with its slots filled. Raises KeyError for a key that does not exist."""
        return self.sentences[key].format(**values)


def languages() -> list[str]:
    """The languages there are."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


@cache
def load(language: str) -> Words:
    """One language's catalogue; nested sections become dotted keys."""
    values = yaml.safe_load((FOLDER / f"{language}.yaml").read_text(encoding="utf-8"))
    return Words(language, str(values.pop("direction", "ltr")), flat(values))


def flat(section: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested sections as dotted keys."""
    sentences: dict[str, str] = {}
    for name, value in section.items():
        sentences |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": str(value)}
    return sentences


def words_for(asked: str) -> Words:
    """The first language of a wish (`ko`, or an Accept-Language header) that there is; English otherwise."""
    for wish in asked.split(","):
        language = wish.split(";")[0].strip().lower().split("-")[0]
        if language in languages():
            return load(language)
    return load(DEFAULT)
