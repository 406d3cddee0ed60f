"""Catalogs of messages, one YAML file a language in `locales/`.

Messages have dotted keys and `{placeholders}`. Tests hold that all languages have the same keys and placeholders.
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
    """The messages of one language."""

    language: str
    direction: str
    messages: dict[str, str]

    def __call__(self, key: str, **values: Any) -> str:
        """Return the message of a key with its placeholders filled; raise KeyError for an unknown key."""
        return self.messages[key].format(**values)


def list_languages(folder: Path = LOCALES_FOLDER) -> list[str]:
    return sorted(file.stem for file in folder.glob("*.yaml"))


@cache
def load_translator(language: str, folder: Path = LOCALES_FOLDER) -> Translator:
    """Load the catalog of a language from a folder: the site's, or that of another part with pages of its own."""
    sections = yaml.safe_load((folder / f"{language}.yaml").read_text(encoding="utf-8"))
    return Translator(language, str(sections.pop("direction", "ltr")), _flatten_messages(sections))


def _flatten_messages(section: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested sections to dotted keys."""
    messages: dict[str, str] = {}
    for name, value in section.items():
        key = prefix + name
        messages |= _flatten_messages(value, f"{key}.") if isinstance(value, dict) else {key: str(value)}
    return messages


def negotiate_language(accept_language: str) -> Translator:
    """Return the first available language of `ko` or an Accept-Language header; English otherwise."""
    for language_range in accept_language.split(","):
        language = language_range.split(";")[0].strip().lower().split("-")[0]
        if language in list_languages():
            return load_translator(language)
    return load_translator(_DEFAULT_LANGUAGE)
