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

LOCALES_FOLDER = Path(__file__).parent / "locales"
_DEFAULT_LANGUAGE = "en"


@dataclass(frozen=True)
class Translator:
    """One language. Called with a key, it gives the sentence."""

    language: str
    direction: str
    messages: dict[str, str]

    def __call__(self, key: str, **values: Any) -> str:
        """The sentence of a key with its slots filled. Raises KeyError for a key that does not exist."""
        return self.messages[key].format(**values)


def list_languages() -> list[str]:
    """The languages there are."""
    return sorted(file.stem for file in LOCALES_FOLDER.glob("*.yaml"))


@cache
def load_translator(language: str) -> Translator:
    """One language's catalogue; nested sections become dotted keys."""
    sections = yaml.safe_load((LOCALES_FOLDER / f"{language}.yaml").read_text(encoding="utf-8"))
    return Translator(language, str(sections.pop("direction", "ltr")), _flatten_messages(sections))


def _flatten_messages(section: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested sections as dotted keys."""
    messages: dict[str, str] = {}
    for name, value in section.items():
        messages |= (
            _flatten_messages(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": str(value)}
        )
    return messages


def negotiate_language(accept_language: str) -> Translator:
    """The first language of a wish (`ko`, or an Accept-Language header) that there is; English otherwise."""
    for language_range in accept_language.split(","):
        language = language_range.split(";")[0].strip().lower().split("-")[0]
        if language in list_languages():
            return load_translator(language)
    return load_translator(_DEFAULT_LANGUAGE)
