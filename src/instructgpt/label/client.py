"""A small client for the site's API: `Service` for programs with a key, `Labeler` for somebody who works.

with Service("https://labels.example.org", key) as site:
    site.make_batch("first", "rank", completions=completions, open=True)

What a broken connection or a restarting server interrupts is sent again for as long as `patience` says, where sending twice does no
harm: reading, claiming (the same task comes back), drafts, and handing in (by its key).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from instructgpt.errors import InputError, RunError

_RETRYABLE_STATUS_CODES = (429, 502, 503, 504)
"""Answers after which a little later it may work."""


class ApiError(RunError):
    """The site said no: `status`, `code` (one word), and the sentence for people."""

    def __init__(self, status: int, code: str, message: str, detail: Mapping[str, Any]) -> None:
        super().__init__(f"the site answered {status} {code}: {message}")
        self.status, self.code, self.detail = status, code, dict(detail)


class BaseClient:
    """One program's or person's way to a site.

    Args:
        site: its address, such as `http://127.0.0.1:8000`.
        patience: seconds for which a call that does no harm twice is tried again.
        timeout: seconds that one try may take.
    """

    def __init__(self, base_url: str, key: str | None = None, patience: float = 60.0, timeout: float = 30.0) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {"Sec-Fetch-Site": "same-origin"}
        try:
            self.http = httpx.Client(base_url=base_url.rstrip("/") + "/api/v1", headers=headers, timeout=timeout)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise InputError(f"{base_url}: no address of a site ({error})") from error
        self.base_url, self.patience, self.transport_error_count = base_url, patience, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self.http.close()

    def request(self, method: str, path: str, *, idempotent: bool | None = None, **options: Any) -> Any:
        """What the site answers, as JSON; None for an empty answer.

        Args:
            again: whether the call may be sent twice; not said, it may when it only reads.

        Raises:
            Refused: the site said no.
            RunFailed: it cannot be reached, for as long as patience lasts.
        """
        may_retry, deadline, delay_s = (
            method == "GET" if idempotent is None else idempotent,
            time.monotonic() + self.patience,
            0.05,
        )
        while True:
            try:
                answer = self.http.request(method, path, **options)
            except httpx.TransportError as error:
                self.transport_error_count += 1
                if not may_retry or time.monotonic() >= deadline:
                    raise RunError(
                        f"{self.base_url}: cannot be reached ({type(error).__name__}: {error}); does 'label serve' run?"
                    ) from error
            else:
                if answer.status_code not in _RETRYABLE_STATUS_CODES or not may_retry or time.monotonic() >= deadline:
                    return self._parse_answer(answer)
            time.sleep(delay_s)
            delay_s = min(2 * delay_s, 2.0)

    def _parse_answer(self, answer: httpx.Response) -> Any:
        if answer.is_success:
            return answer.json() if answer.content else None
        try:
            body = answer.json()
            error = ApiError(answer.status_code, str(body["error"]), str(body["message"]), body.get("detail") or {})
        except (ValueError, KeyError, TypeError):
            raise RunError(f"{self.base_url}: answered {answer.status_code}, not as a labelers' site does") from None
        raise error


class OwnerClient(BaseClient):
    """What a program with a key does; scopes as in docs/label-api.md."""

    def upsert_prompt(self, prompt: Mapping[str, Any]) -> dict[str, Any]:
        """One prompt, new or by its `id`."""
        return dict(self.request("POST", "/prompts", json=dict(prompt), idempotent=True))

    def import_prompts(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Many prompts; what became of each line."""
        return self._import("prompts", rows)

    def import_completions(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Many completions; what became of each line."""
        return self._import("completions", rows)

    def _import(self, resource: str, rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        lines = ((json.dumps(dict(row), ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass") for row in rows)
        return dict(
            self.request("POST", f"/{resource}:import", content=lines, headers={"Content-Type": "application/x-ndjson"})
        )

    def list_models(self) -> list[dict[str, Any]]:
        """The models whose completions are there."""
        return list(self.request("GET", "/models"))

    def list_batches(self) -> list[dict[str, Any]]:
        """All batches with their progress, the newest first."""
        return list(self.request("GET", "/batches"))

    def get_batch(self, batch_id: str) -> dict[str, Any]:
        """One batch."""
        return dict(self.request("GET", f"/batches/{batch_id}"))

    def create_batch(self, name: str, kind: str, **options: Any) -> dict[str, Any]:
        """A batch of `prompts`, `completions` or what is `stored`; see docs/label-api.md for the rest."""
        return dict(self.request("POST", "/batches", json={"name": name, "kind": kind, **options}))

    def open_batch(self, batch_id: str) -> dict[str, Any]:
        """Labelers get its tasks from now on."""
        return dict(self.request("POST", f"/batches/{batch_id}/open", idempotent=True))

    def close_batch(self, batch_id: str) -> dict[str, Any]:
        """Nobody is given a task of it any more."""
        return dict(self.request("POST", f"/batches/{batch_id}/close", idempotent=True))

    def iter_tasks(self, batch_id: str) -> Iterator[dict[str, Any]]:
        """The tasks of a batch."""
        return self._paginate(f"/batches/{batch_id}/tasks", "tasks")

    def iter_submissions(self, since: int | None = None) -> Iterator[dict[str, Any]]:
        """Everything handed in, the oldest first."""
        return self._paginate("/submissions", "submissions", {} if since is None else {"since": since})

    def _paginate(self, path: str, items_key: str, params: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        cursor: dict[str, str] = {}
        while True:
            page = self.request("GET", path, params={"limit": 500, **(params or {}), **cursor})
            yield from page[items_key]
            if page["next"] is None:
                return
            cursor = {"after": page["next"]}

    def iter_rows(self, name: str, use: str = "training", batches: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
        """The rows of one file of an export, as they come."""
        with self.http.stream("GET", f"/rows/{name}", params={"use": use, "batch": list(batches)}) as answer:
            if not answer.is_success:
                answer.read()
                self._parse_answer(answer)
            for line in answer.iter_lines():
                yield json.loads(line)

    def export(self, out: Path, *, poll_interval_s: float = 0.1, **options: Any) -> dict[str, Any]:
        """Have an export made, fetch its files into a folder, going on where a download breaks off. Returns the job.

        Raises:
            RunFailed: the export failed, or the site cannot be reached.
        """
        job = self.request("POST", "/exports", json=options)
        while job["state"] == "running":
            time.sleep(poll_interval_s)
            job = self.request("GET", f"/exports/{job['id']}")
        if job["state"] == "failed":
            raise RunError(f"the export failed: {job['error']}")
        for name in job["files"]:
            self._download(f"/exports/{job['id']}/files/{name}", out / name)
        return dict(job)

    def _download(self, path: str, file: Path) -> None:
        """A file, whole: each try goes on from what is there."""
        file.parent.mkdir(parents=True, exist_ok=True)
        partial, deadline = file.with_name(f".{file.name}.part"), time.monotonic() + self.patience
        partial.unlink(missing_ok=True)
        while not self._resume_download(path, partial):
            if time.monotonic() >= deadline:
                raise RunError(f"{self.base_url}{path}: broke off again and again")
            time.sleep(0.2)
        partial.replace(file)

    def _resume_download(self, path: str, partial: Path) -> bool:
        """What of a file is not there yet; whether it is whole now."""
        offset = partial.stat().st_size if partial.exists() else 0
        try:
            with self.http.stream("GET", path, headers={"Range": f"bytes={offset}-"} if offset else {}) as answer:
                if answer.status_code == 416:  # nothing is missing
                    return True
                if not answer.is_success:
                    answer.read()
                    self._parse_answer(answer)
                with partial.open("ab" if answer.status_code == 206 else "wb") as stream:
                    stream.writelines(answer.iter_bytes())
        except httpx.TransportError:
            return False
        return True

    def get_agreement(self, batch_id: str | None = None) -> dict[str, Any]:
        """How far labelers agree."""
        return dict(self.request("GET", "/stats/agreement", params={"batch": batch_id} if batch_id else {}))

    def get_win_rates(self, batch_id: str) -> list[dict[str, Any]]:
        """What an evaluation that is closed came to."""
        return list(self.request("GET", f"/stats/win-rates/{batch_id}"))

    def list_people(self) -> list[dict[str, Any]]:
        """All accounts, by pseudonym."""
        return list(self.request("GET", "/users"))

    def decide(self, person_id: str, verdict: str, reason: str) -> dict[str, Any]:
        """Admit, decline or pause a labeler."""
        return dict(self.request("POST", f"/users/{person_id}/decide", json={"verdict": verdict, "reason": reason}))

    def create_invite(self, **options: Any) -> str:
        """The token of a new invitation."""
        return str(self.request("POST", "/invites", json=options)["token"])

    def is_ready(self) -> bool:
        """Whether the site answers and its database is well."""
        try:
            return bool(self.http.get("/readyz").is_success)
        except httpx.TransportError:
            return False


class LabelerClient(BaseClient):
    """What somebody who works does: the calls of the pages' scripts."""

    def redeem_invite(self, token: str, name: str, password: str) -> dict[str, Any]:
        """Use an invitation, agreeing to the consent text, and be signed in."""
        consent_version = self.request("GET", "/consent")["version"]
        try:
            payload = {"token": token, "name": name, "password": password, "consent": consent_version}
            return self._store_csrf_token(self.request("POST", "/redeem", json=payload, idempotent=True))
        except ApiError as error:
            if error.code not in ("name_taken", "bad_link"):
                raise
            return self.sign_in(name, password)  # the answer to the first try was lost on its way

    def sign_in(self, name: str, password: str) -> dict[str, Any]:
        """Sign in with a password."""
        return self._store_csrf_token(
            self.request("POST", "/sign-in", json={"name": name, "password": password}, idempotent=True)
        )

    def _store_csrf_token(self, account: dict[str, Any]) -> dict[str, Any]:
        self.http.headers["X-CSRF-Token"] = account["csrf"]
        return account

    def get_account(self) -> dict[str, Any]:
        """Who is signed in."""
        return dict(self.request("GET", "/me"))

    def read_instructions(self, purpose: str) -> None:
        """Read the newest version and answer its quiz until nothing is wrong."""
        instructions = self.request("GET", f"/instructions/{purpose}")
        answers = [0] * len(instructions["quiz"])
        while not instructions["read"]:
            result = self.request(
                "POST",
                f"/instructions/{purpose}",
                json={"version": instructions["version"], "answers": answers},
                idempotent=True,
            )
            if result["passed"]:
                return
            for index in result["wrong"]:
                answers[index] = (answers[index] + 1) % len(instructions["quiz"][index]["options"])

    def claim_task(self, kind: str | None = None) -> dict[str, Any] | None:
        """The next task, or the one in hand; None when there is nothing to do."""
        return self.request("POST", "/tasks/claim", json={"kind": kind} if kind else {}, idempotent=True)  # type: ignore[no-any-return]

    def save_draft(self, assignment_id: str, revision: int, payload: Mapping[str, Any]) -> int:
        """Keep what there is; the new revision."""
        answer = self.request(
            "PUT", f"/assignments/{assignment_id}/draft", json=dict(payload), headers={"If-Match": str(revision)}
        )
        return int(answer["rev"])

    def submit(self, assignment_id: str, form: Mapping[str, Any], idempotency_key: str) -> dict[str, Any]:
        """Hand in; the same key never hands in twice."""
        headers = {"Idempotency-Key": idempotency_key}
        return dict(
            self.request(
                "POST", f"/assignments/{assignment_id}/submit", json=dict(form), headers=headers, idempotent=True
            )
        )

    def skip(self, assignment_id: str, reason: str, note: str = "") -> None:
        """Hand a task back."""
        self.request("POST", f"/assignments/{assignment_id}/skip", json={"reason": reason, "note": note})

    def undo(self, assignment_id: str) -> dict[str, Any]:
        """Take back the last step."""
        return dict(self.request("POST", f"/assignments/{assignment_id}/undo"))

    def get_history(self, before: str | None = None) -> dict[str, Any]:
        """What one handed in and skipped."""
        return dict(self.request("GET", "/me/history", params={"before": before} if before else {}))
