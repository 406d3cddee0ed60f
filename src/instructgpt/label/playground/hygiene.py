"""What is left out before a prompt is stored: front ends' background requests, retries, personal data.

Front ends send the same model requests of their own beside what a person wrote: titles, tags, follow-up questions,
search terms, completions of half a sentence (open-webui/open-webui#6702, #13167). They are recognized by the beginning
of their last message. The SDK of OpenAI counts its retries in a header.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from instructgpt.data.pii import find_pii
from instructgpt.label.db.models import PlaygroundCount

RETRY_HEADER = "x-stainless-retry-count"

_BACKGROUND_PATTERNS: Mapping[str, re.Pattern[str]] = {
    "open-webui": re.compile(
        r"\s*###\s*task:\s*(?:generate|suggest|analy[sz]e|create|you are an autocompletion|provide|summari[sz]e)"
        r"|\s*create a concise, 3-5 word (?:phrase|title)"
        r"|\s*based on the chat history, determine whether a search",
        re.IGNORECASE,
    ),
    "librechat": re.compile(
        r"\s*(?:please )?(?:provide|generate|write|detect user language and write)[^\n]{0,60}\b(?:concise|short)\b"
        r"[^\n]{0,60}\btitle\b",
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
    """Return the front end whose background request this is, or None for what a person wrote."""
    last = next((turn["content"] for turn in reversed(list(messages)) if turn["role"] == "user"), "")
    return next((name for name, pattern in _BACKGROUND_PATTERNS.items() if pattern.match(last)), None)


def is_retry(headers: Mapping[str, str]) -> bool:
    """Return whether an SDK says that it sends a request again."""
    value = headers.get(RETRY_HEADER, "0").strip()
    return value.isascii() and value.isdigit() and int(value) > 0


def find_personal_data(messages: Iterable[Mapping[str, str]]) -> list[str]:
    """Return the kinds of personal data in what the user wrote, sorted."""
    texts = (turn["content"] for turn in messages if turn["role"] != "assistant")
    return sorted({match.kind for text in texts for match in find_pii(text)})


def count_not_stored(db: Session, reason: str, now_ms: int) -> None:
    """Count a request of today that is not stored."""
    day = datetime.fromtimestamp(now_ms / 1000, UTC).strftime("%Y-%m-%d")
    insert = sqlite.insert if db.get_bind().dialect.name == "sqlite" else postgresql.insert
    statement = insert(PlaygroundCount).values(day=day, reason=reason, count=1)
    increment = {"count": PlaygroundCount.count + 1}
    db.execute(statement.on_conflict_do_update(index_elements=["day", "reason"], set_=increment))
