"""Requests that may be kept: `store: true` from a key whose owner agreed. A directory of JSON lines.

requests.jsonl   a record a line, readable as prompts: prompt or messages, completions, model, sampling, seed, user, key
review.jsonl     the same, where personal data was found: a person decides, nothing trains on it
withdrawn.jsonl  a line for each deletion of an owner's requests: time and pseudonym; other stores follow it
left_out.jsonl   a line for each request that said `store: true` and was not kept: time and reason, no text
pseudonyms.key   the secret from which owners' pseudonyms are made

A line is written whole and synced before the answer ends. A line that a crash has cut is removed by the next write.
The address of a client is kept nowhere.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from instructgpt.data.background_requests import find_background_client
from instructgpt.data.pii import find_pii
from instructgpt.errors import InputError
from instructgpt.io import format_json_line, write_text_atomic
from instructgpt.serve.keys import APIKey

REQUESTS, REVIEW, LEFT_OUT, WITHDRAWN = "requests.jsonl", "review.jsonl", "left_out.jsonl", "withdrawn.jsonl"
_SECRET = "pseudonyms.key"

LeftOutReason = Literal["no consent", "background request", "retry", "content filter"]


@dataclass(frozen=True, slots=True)
class StoredRequest:
    """A request with its completions, as it would be kept."""

    id: str
    prompt: Mapping[str, Any]
    """`prompt`, or `messages`."""
    completions: Sequence[Mapping[str, Any]]
    """`completion` and `finish` of each."""
    model: str
    model_hash: str
    sampling: Mapping[str, Any]
    seed: int | None


def is_background_request(prompt: Mapping[str, Any]) -> bool:
    """Return whether a front end sent the prompt for itself: a title, tags, follow-up questions."""
    text = str(prompt.get("prompt") or "")
    return find_background_client(prompt.get("messages") or [{"role": "user", "content": text}]) is not None


class RequestLog:
    """A directory of kept requests."""

    def __init__(self, folder: Path) -> None:
        """Create the directory if it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        self.folder = folder
        with self._locked():
            secret_path = folder / _SECRET
            if not secret_path.exists():
                write_text_atomic(secret_path, secrets.token_hex(32))
                secret_path.chmod(0o600)
            self._secret = bytes.fromhex(secret_path.read_text(encoding="utf-8").strip())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one process at a time append or rewrite."""
        with (self.folder / ".lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def pseudonym(self, owner: str) -> str:
        """Return the name under which an owner's requests are kept."""
        return hmac.new(self._secret, owner.encode(), hashlib.sha256).hexdigest()[:16]

    def add(self, request: StoredRequest, key: APIKey | None, *, retries: int = 0) -> bool:
        """Keep a request that said `store: true`, or count why not. Returns whether it is kept, for review too."""
        if key is None or not key.store:
            self.leave_out("no consent")
            return False
        if retries:
            self.leave_out("retry")
            return False
        if is_background_request(request.prompt):
            self.leave_out("background request")
            return False
        record = {
            "id": request.id,
            "time": _now().isoformat(timespec="seconds"),
            **request.prompt,
            "completions": [dict(completion) for completion in request.completions],
            "model": request.model,
            "sha256": request.model_hash,
            "sampling": dict(request.sampling),
            "seed": request.seed,
            "user": self.pseudonym(key.owner),
            "key": key.name,
            "source": "api",
        }
        if key.use_case:
            record["use_case"] = key.use_case
        text = json.dumps([request.prompt, record["completions"]], ensure_ascii=False)
        kinds = sorted({match.kind for match in find_pii(text)})
        if kinds:
            record["personal_data"] = kinds
        self._append(REVIEW if kinds else REQUESTS, record)
        return True

    def leave_out(self, reason: LeftOutReason) -> None:
        """Count a request that said `store: true` and is not kept."""
        self._append(LEFT_OUT, {"time": _now().isoformat(timespec="seconds"), "reason": reason})

    def _append(self, name: str, record: dict[str, Any]) -> None:
        line = format_json_line(record).encode()
        with self._locked():
            descriptor = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                end = _end_of_last_line(descriptor)
                os.ftruncate(descriptor, end)
                os.lseek(descriptor, end, os.SEEK_SET)
                while line:
                    line = line[os.write(descriptor, line) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def records(self, name: str = REQUESTS) -> Iterator[dict[str, Any]]:
        """Yield the records of a file; a line that a crash has cut is not one."""
        path = self.folder / name
        if path.exists():
            for line in path.read_bytes().split(b"\n")[:-1]:
                yield json.loads(line)

    def delete_owner(self, owner: str) -> int:
        """Delete everything of an owner, for review too. Returns how many requests that were."""
        user = self.pseudonym(owner)
        self._append(WITHDRAWN, {"time": _now().isoformat(timespec="seconds"), "user": user})
        return self._keep_only(lambda record: record["user"] != user)

    def delete_before(self, days: int) -> int:
        """Delete requests that are older. Returns how many."""
        limit = _now() - timedelta(days=days)
        return self._keep_only(lambda record: datetime.fromisoformat(record["time"]) >= limit)

    def _keep_only(self, condition: Any) -> int:
        deleted = 0
        with self._locked():
            for name in (REQUESTS, REVIEW):
                records = list(self.records(name))
                remaining = [record for record in records if condition(record)]
                deleted += len(records) - len(remaining)
                if len(remaining) < len(records):
                    write_text_atomic(self.folder / name, map(format_json_line, remaining))
                    (self.folder / name).chmod(0o600)
        return deleted

    def counts(self) -> dict[str, int]:
        """Return how many requests are kept, wait for review, and were left out by reason."""
        counts = {"kept": sum(1 for _ in self.records()), "in review": sum(1 for _ in self.records(REVIEW))}
        reasons = Counter(record["reason"] for record in self.records(LEFT_OUT))
        return counts | {f"left out, {reason}": count for reason, count in sorted(reasons.items())}


def open_request_log(folder: Path) -> RequestLog:
    """Open a directory that exists. Raises InputError where it is none of these."""
    if not (folder / _SECRET).is_file():
        raise InputError(f"--store {folder}: no requests are kept there; 'instructgpt serve --store' makes it")
    return RequestLog(folder)


def _now() -> datetime:
    return datetime.now(UTC)


def _end_of_last_line(descriptor: int) -> int:
    """Return the position after the last whole line."""
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - 65_536)
        place = os.pread(descriptor, end - start, start).rfind(b"\n")
        if place >= 0:
            return start + place + 1
        end = start
    return 0
