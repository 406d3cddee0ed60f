"""What is left out before a prompt is stored: retries and personal data; background requests are recognized in
`data.background_requests`. The SDK of OpenAI counts its retries in a header.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from instructgpt.data.pii import find_pii
from instructgpt.label.db.models import PlaygroundCount

RETRY_HEADER = "x-stainless-retry-count"


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
