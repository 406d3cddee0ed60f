"""Completions that say which model wrote them: in a blind comparison they are marked at intake and shown apart."""

from __future__ import annotations

import re

_MODEL_FAMILIES = (
    "chatgpt",
    "gpt",
    "instructgpt",
    "davinci",
    "claude",
    "gemini",
    "bard",
    "palm",
    "llama",
    "alpaca",
    "vicuna",
    "mistral",
    "mixtral",
    "qwen",
    "deepseek",
    "falcon",
    "gemma",
    "grok",
    "copilot",
    "bing",
    "ernie",
    "yi",
    "phi",
    "command-r",
    "exaone",
    "hyperclova",
)
_MODEL_MAKERS = (
    "openai",
    "anthropic",
    "google",
    "deepmind",
    "meta",
    "microsoft",
    "mistral ai",
    "alibaba",
    "cohere",
    "xai",
    "baidu",
    "naver",
    "lg",
)

_FAMILIES_PATTERN = "|".join(re.escape(name) for name in _MODEL_FAMILIES)
_MAKERS_PATTERN = "|".join(re.escape(name) for name in _MODEL_MAKERS)
_SELF_IDENTIFICATION = re.compile(
    rf"\b(?:i\s*am|i['’]m|my\s+name\s+is|call\s+me|as)\s+(?:an?\s+|the\s+)?(?:{_FAMILIES_PATTERN})(?:[-\s]?[\d.]+\w*)?\b"
    rf"|\b(?:trained|developed|created|made|built)\s+by\s+(?:{_MAKERS_PATTERN})\b"
    rf"|(?:저는|나는|제\s*이름은)\s*(?:{_FAMILIES_PATTERN}|챗gpt|클로드|제미나이)"
    rf"|(?:{_MAKERS_PATTERN}|오픈ai|구글|네이버)(?:에서|가|이)\s*(?:개발|훈련|학습|만든|만들)",
    re.IGNORECASE,
)


def reveals_model(text: str, models: tuple[str, ...] | list[str] = ()) -> bool:
    """Whether a completion gives away where it comes from.

    Args:
        text: the completion.
        models: the names of the models that are compared; only names that no ordinary sentence holds are looked for (`gpt-4o`,
            `sft_175b`; not `base`): those with a digit, a hyphen or an underscore, of four letters or more.
    """
    if _SELF_IDENTIFICATION.search(text):
        return True
    lower = text.lower()
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", lower) for name in map(_distinctive_name, models) if name)


def _distinctive_name(model: str) -> str:
    """The part of a model's name that would give it away, in small letters; empty when there is none."""
    name = model.rstrip("/").rsplit("/", 1)[-1].lower()
    return name if len(name) >= 4 and re.search(r"[\d_-]", name) else ""
