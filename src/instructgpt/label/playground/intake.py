"""Import what `instructgpt serve --store` kept: prompts of API users, with their answers and withdrawals.

An API user is the owner of a key, under the pseudonym of the request log; the key's consent is version 0 of the
playground's consent texts. A request becomes a turn, so that review, erasure, retention and the next round treat it as
a prompt of the playground. Importing again adds what is new, and erases what an owner withdrew since.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt import records
from instructgpt.data.background_requests import find_background_client
from instructgpt.errors import InputError
from instructgpt.io import SkippedLines, parse_json_object, skip_or_raise
from instructgpt.label.auth.tokens import generate_token, hash_token
from instructgpt.label.context import Site
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import (
    PlaygroundAgreement,
    PlaygroundAnswer,
    PlaygroundConsentText,
    PlaygroundSession,
    PlaygroundTurn,
    PlaygroundUser,
    current_time_ms,
)
from instructgpt.label.db.models.base import new_random_id
from instructgpt.label.playground import hygiene
from instructgpt.label.playground.erasure import erase_user_texts
from instructgpt.label.playground.review import send_to_review
from instructgpt.label.tasks.ingest import replace_unstorable

REQUESTS, REVIEW, LEFT_OUT, WITHDRAWN = "requests.jsonl", "review.jsonl", "left_out.jsonl", "withdrawn.jsonl"
"""Files of a request log; `docs/guides/serve.md` describes them."""
API_CLIENT = "api"
_PSEUDONYM_PREFIX = "api-"
_KEY_CONSENT_VERSION = 0
_KEY_CONSENT = "The owner of the API key agreed that requests which say `store: true` are kept."
_CHUNK_SIZE = 200


class _Completion(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    completion: str
    finish: str | None = None


class _KeptRequest(BaseModel):
    """A line of `requests.jsonl` or `review.jsonl`, without its prompt."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    id: Annotated[str, Field(min_length=1)]
    time: datetime
    user: Annotated[str, Field(min_length=1)]
    completions: tuple[_Completion, ...]
    model: str
    sha256: str = ""
    sampling: dict[str, Any] = {}
    seed: int | None = None
    use_case: str | None = None
    personal_data: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _LocatedRequest:
    location: str
    request: _KeptRequest
    messages: list[dict[str, str]]
    in_review: bool


@dataclass
class IntakeReport:
    """Counts of one import of a request log."""

    imported: int = 0
    in_review: int = 0
    erased: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    endpoint_left_out: Counter[str] = field(default_factory=Counter)
    """What the endpoint itself did not keep, since the log began."""

    def format_summary(self) -> str:
        parts = [f"{self.imported} new prompts of API users, {self.in_review} of them for review"]
        if self.erased:
            parts.append(f"{self.erased} erased: withdrawn")
        for name, counts in (("left out", self.left_out), ("not kept by the endpoint", self.endpoint_left_out)):
            texts = [f"{count} {reason}" for reason, count in sorted(counts.items()) if count]
            if texts:
                parts.append(f"{name}: {', '.join(texts)}")
        return "; ".join(parts)


def import_request_log(site: Site, folder: Path, skipped: SkippedLines | None = None) -> IntakeReport:
    """Import a request log's directory.

    Raises:
        InputError: the directory is no request log, or a line is wrong and may not be skipped.
    """
    if not any((folder / name).is_file() for name in (REQUESTS, REVIEW, LEFT_OUT, WITHDRAWN)):
        raise InputError(f"--requests {folder}: no requests are kept there; 'instructgpt serve --store' keeps them")
    report = IntakeReport()
    requests = [
        *_read_requests(folder / REQUESTS, skipped, in_review=False),
        *_read_requests(folder / REVIEW, skipped, in_review=True),
    ]
    # read after the requests: what is withdrawn meanwhile is in both, and erased again below
    withdrawals = list(_read_withdrawals(folder / WITHDRAWN, skipped))
    for _, row in _read_lines(folder / LEFT_OUT, skipped):
        report.endpoint_left_out[str(row.get("reason"))] += 1
    for start in range(0, len(requests), _CHUNK_SIZE):
        with site.database.write() as db:
            for located in requests[start : start + _CHUNK_SIZE]:
                _store_request(db, located, report)
    with site.database.write() as db:
        for user_name, time_ms in withdrawals:
            report.erased += _apply_withdrawal(db, user_name, time_ms)
        counts = {"imported": report.imported, "review": report.in_review, "erased": report.erased}
        audit_log.append_entry(db, "cli", "playground.import_requests", "", **counts)
    if report.erased:
        site.database.purge_deleted()
    return report


def _read_lines(path: Path, skipped: SkippedLines | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield `file:line` and object of each whole line; the server may be writing the last one."""
    if not path.is_file():
        return
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        location = f"{path}:{number}"
        try:
            yield location, parse_json_object(line.decode())
        except ValueError as error:
            skip_or_raise(location, error, skipped)


def _read_requests(path: Path, skipped: SkippedLines | None, *, in_review: bool) -> Iterator[_LocatedRequest]:
    for location, row in _read_lines(path, skipped):
        try:
            prompt = records.Prompt.model_validate({name: row[name] for name in ("prompt", "messages") if name in row})
            messages = [
                {"role": turn.role, "content": replace_unstorable(turn.content)} for turn in prompt.conversation
            ]
            yield _LocatedRequest(location, _KeptRequest.model_validate(row), messages, in_review)
        except ValidationError as error:
            skip_or_raise(location, ValueError(records.format_validation_error(error)), skipped)


def _read_withdrawals(path: Path, skipped: SkippedLines | None) -> Iterator[tuple[str, int]]:
    for location, row in _read_lines(path, skipped):
        try:
            yield str(row["user"]), _to_ms(datetime.fromisoformat(row["time"]))
        except (KeyError, TypeError, ValueError):
            skip_or_raise(location, ValueError("expected 'user' and 'time' of a withdrawal"), skipped)


def _to_ms(time: datetime) -> int:
    return round(time.timestamp() * 1000)


def _store_request(db: Session, located: _LocatedRequest, report: IntakeReport) -> None:
    request, messages = located.request, located.messages
    user = _find_or_create_user(db, request.user)
    created_at = _to_ms(request.time)
    state = db.scalars(
        select(PlaygroundTurn.state).where(PlaygroundTurn.user_id == user.id, PlaygroundTurn.key == request.id)
    ).first()
    if state is not None and state != "erased":
        return
    if state == "erased" or (user.erased_at or 0) >= created_at:
        report.left_out["erased on the site"] += 1
        return
    if find_background_client(messages) is not None:
        report.left_out["background request"] += 1
        return
    personal_data = sorted({*request.personal_data, *hygiene.find_personal_data(messages)})
    turn = PlaygroundTurn(
        key=request.id,
        user_id=user.id,
        agreement_id=_find_or_create_agreement(db, user).id,
        messages=messages,
        personal_data=personal_data,
        client=API_CLIENT,
        use_case=request.use_case,
        created_at=created_at,
    )
    db.add(turn)
    db.flush()
    db.add_all(_build_answers(turn.id, request))
    if personal_data or located.in_review:
        send_to_review(db, turn, user.pseudonym)
        report.in_review += 1
    report.imported += 1


def _build_answers(turn_id: str, request: _KeptRequest) -> Sequence[PlaygroundAnswer]:
    sampling = {**request.sampling, "seed": request.seed}
    return [
        PlaygroundAnswer(
            id=new_random_id(),
            turn_id=turn_id,
            position=position,
            model=request.model,
            checkpoint=request.sha256 or None,
            sampling=sampling,
            text=replace_unstorable(completion.completion),
            finish=completion.finish or "stop",
        )
        for position, completion in enumerate(request.completions)
    ]


def _find_or_create_user(db: Session, name: str) -> PlaygroundUser:
    """Return the user of a request log's pseudonym. Nobody knows the cookie of it."""
    pseudonym = _PSEUDONYM_PREFIX + name
    user = db.scalars(select(PlaygroundUser).where(PlaygroundUser.pseudonym == pseudonym)).first()
    if user is None:
        user = PlaygroundUser(pseudonym=pseudonym, token_hash=hash_token(generate_token()))
        db.add(user)
        db.flush()
    return user


def _find_or_create_agreement(db: Session, user: PlaygroundUser) -> PlaygroundAgreement:
    """Return the agreement of a key's owner; after a withdrawal later requests have a new one."""
    current = select(PlaygroundAgreement).where(
        PlaygroundAgreement.user_id == user.id, PlaygroundAgreement.withdrawn_at.is_(None)
    )
    agreement = db.scalars(current).first()
    if agreement is not None:
        return agreement
    if db.get(PlaygroundConsentText, _KEY_CONSENT_VERSION) is None:
        db.add(PlaygroundConsentText(version=_KEY_CONSENT_VERSION, bodies={"en": _KEY_CONSENT}))
    session = PlaygroundSession(token_hash=hash_token(generate_token()), user_id=user.id)
    db.add(session)
    db.flush()
    agreement = PlaygroundAgreement(user_id=user.id, session_id=session.id, version=_KEY_CONSENT_VERSION)
    db.add(agreement)
    db.flush()
    audit_log.append_entry(db, user.id, "playground.agree", agreement.id, version=_KEY_CONSENT_VERSION)
    return agreement


def _apply_withdrawal(db: Session, user_name: str, time_ms: int) -> int:
    """Erase what an owner had withdrawn up to a time; return the number of prompts."""
    pseudonym = _PSEUDONYM_PREFIX + user_name
    user = db.scalars(select(PlaygroundUser).where(PlaygroundUser.pseudonym == pseudonym)).first()
    if user is None or (user.erased_at or 0) >= time_ms:
        return 0
    return erase_user_texts(db, user, current_time_ms(), until_ms=time_ms)
