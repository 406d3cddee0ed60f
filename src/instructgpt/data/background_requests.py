"""Requests that front ends send for themselves, beside what a person wrote.

Titles, tags, follow-up questions, search terms and completions of half a sentence go to the same model as the
conversation (open-webui/open-webui#6702, #13167). They are recognized by the beginning of a message.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_BACKGROUND_PATTERNS: Mapping[str, re.Pattern[str]] = {
    "open-webui": re.compile(
        r"\s*###\s*task:\s*(?:generate|suggest|analy[sz]e|create|you are an autocompletion|provide|summari[sz]e"
        r"|your task is to (?:reflect|synth))"
        r"|\s*create a concise, 3-5 word (?:phrase|title)"
        r"|\s*based on the chat history, determine whether a search",
        re.IGNORECASE,
    ),
    "librechat": re.compile(
        r"\s*(?:please )?(?:provide|generate|write|create|detect user language and write)[^\n]{0,60}"
        r"\b(?:concise|short|brief)\b[^\n]{0,60}\btitle\b"
        r"|[\s\S]{0,4000}\btitle (?:for|of) (?:the|this) conversation\b[\s\S]{0,400}$",
        re.IGNORECASE,
    ),
    "lobe-chat": re.compile(
        r"\s*(?:you(?:'re| are) (?:a|an) (?:assistant|conversation)[^\n]{0,80}\b(?:summari[sz]e|title)\b)"
        r"|\s*summari[sz]e (?:the|this|our) (?:conversation|dialog|discussion)[^\n]{0,80}\b(?:title|topic|words?)\b",
        re.IGNORECASE,
    ),
    "continue": re.compile(r"\s*<\|?fim_prefix\|?>|\s*<PRE>\s", re.IGNORECASE),
}
"""Front end -> the beginning of its background requests."""


def find_background_client(messages: Iterable[Mapping[str, str]]) -> str | None:
    """Return the front end whose background request this is, or None for what a person wrote.

    The last message of the user decides, or instructions in front of the conversation.
    """
    turns = list(messages)
    texts = [turn["content"] for turn in turns if turn["role"] == "user"][-1:]
    texts += [turn["content"] for turn in turns[:1] if turn["role"] != "assistant"]
    matches = (name for name, pattern in _BACKGROUND_PATTERNS.items() for text in texts if pattern.match(text))
    return next(matches, None)
