"""A client for the site's API: `OwnerClient` for programs with an API key, `LabelerClient` for a labeler's work.

with OwnerClient("https://labels.example.org", key) as site:
    site.create_batch("first", "rank", completions=completions, open=True)

Idempotent calls are retried for `patience` seconds after a transport error or while the server restarts: reading,
claiming (which returns the same task), and submitting (by its idempotency key).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx

from instructgpt.errors import InputError, RunError

_RETRYABLE_STATUS_CODES = (429, 502, 503, 504)


class ApiError(RunError):
    """The site refused a request, with `status`, a one-word `code` and `detail`."""

    def __init__(self, status: int, code: str, message: str, detail: Mapping[str, Any]) -> None:
        super().__init__(f"the site returned {status} {code}: {message}")
        self.status, self.code, self.detail = status, code, dict(detail)


class BaseClient:
    """The connection of both clients.

    Args:
        base_url: URL of the site, such as `http://127.0.0.1:8000`.
        patience: seconds for which idempotent calls are retried.
        timeout: seconds per attempt.
    """

    def __init__(self, base_url: str, key: str | None = None, patience: float = 60.0, timeout: float = 30.0) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {"Sec-Fetch-Site": "same-origin"}
        try:
            self.http = httpx.Client(base_url=base_url.rstrip("/") + "/api/v1", headers=headers, timeout=timeout)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise InputError(f"{base_url}: not a URL of a site ({error})") from error
        self.base_url, self.patience, self.transport_error_count = base_url, patience, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.http.close()

    def request(self, method: str, path: str, *, idempotent: bool | None = None, **options: Any) -> Any:
        """Send a request and return the parsed JSON, or None for an empty response.

        Args:
            idempotent: whether the call may be sent twice; by default only GET.

        Raises:
            ApiError: the site refused the request.
            RunError: the site is unreachable, after the retries.
        """
        may_retry = method == "GET" if idempotent is None else idempotent
        deadline, delay_s = time.monotonic() + self.patience, 0.05
        while True:
            try:
                answer = self.http.request(method, path, **options)
            except httpx.TransportError as error:
                self.transport_error_count += 1
                if not may_retry or time.monotonic() >= deadline:
                    reason = f"{type(error).__name__}: {error}"
                    raise RunError(f"{self.base_url}: unreachable ({reason}); is 'label serve' running?") from error
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
            raise RunError(f"{self.base_url}: returned {answer.status_code}; is this a labelers' site?") from None
        raise error


class OwnerClient(BaseClient):
    """Client with an API key; docs/reference/label-api.md lists the scopes."""

    def upsert_prompt(self, prompt: Mapping[str, Any]) -> dict[str, Any]:
        """Create a prompt, or update the one with its `id`."""
        return dict(self.request("POST", "/prompts", json=dict(prompt), idempotent=True))

    def import_prompts(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Import prompts and return the result of each line."""
        return self._import("prompts", rows)

    def import_completions(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Import completions and return the result of each line."""
        return self._import("completions", rows)

    def _import(self, resource: str, rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        lines = ((json.dumps(dict(row), ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass") for row in rows)
        headers = {"Content-Type": "application/x-ndjson"}
        return dict(self.request("POST", f"/{resource}:import", content=lines, headers=headers))

    def list_models(self) -> list[dict[str, Any]]:
        return list(self.request("GET", "/models"))

    def list_batches(self) -> list[dict[str, Any]]:
        return list(self.request("GET", "/batches"))

    def get_batch(self, batch_id: str) -> dict[str, Any]:
        return dict(self.request("GET", f"/batches/{batch_id}"))

    def create_batch(self, name: str, kind: str, **options: Any) -> dict[str, Any]:
        """Create a batch of `prompts`, `completions` or `stored` data (docs/reference/label-api.md)."""
        return dict(self.request("POST", "/batches", json={"name": name, "kind": kind, **options}))

    def open_batch(self, batch_id: str) -> dict[str, Any]:
        return dict(self.request("POST", f"/batches/{batch_id}/open", idempotent=True))

    def close_batch(self, batch_id: str) -> dict[str, Any]:
        return dict(self.request("POST", f"/batches/{batch_id}/close", idempotent=True))

    def iter_tasks(self, batch_id: str) -> Iterator[dict[str, Any]]:
        return self._paginate(f"/batches/{batch_id}/tasks", "tasks")

    def iter_submissions(self, since: int | None = None) -> Iterator[dict[str, Any]]:
        """Yield all submissions, oldest first; `since` is in milliseconds."""
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
        with self.http.stream("GET", f"/rows/{name}", params={"use": use, "batch": list(batches)}) as answer:
            if not answer.is_success:
                answer.read()
                self._parse_answer(answer)
            for line in answer.iter_lines():
                yield json.loads(line)

    def export(self, out: Path, *, poll_interval_s: float = 0.1, **options: Any) -> dict[str, Any]:
        """Run an export job, download its files into a folder and return the job. Raises RunError if it fails."""
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
        file.parent.mkdir(parents=True, exist_ok=True)
        partial, deadline = file.with_name(f".{file.name}.part"), time.monotonic() + self.patience
        partial.unlink(missing_ok=True)
        while not self._resume_download(path, partial):
            if time.monotonic() >= deadline:
                raise RunError(f"{self.base_url}{path}: the download was interrupted repeatedly")
            time.sleep(0.2)
        partial.replace(file)

    def _resume_download(self, path: str, partial: Path) -> bool:
        """Append the missing part of a file; return whether the file is complete."""
        offset = partial.stat().st_size if partial.exists() else 0
        try:
            with self.http.stream("GET", path, headers={"Range": f"bytes={offset}-"} if offset else {}) as answer:
                if answer.status_code == 416:  # range not satisfiable: the file is complete
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
        return dict(self.request("GET", "/stats/agreement", params={"batch": batch_id} if batch_id else {}))

    def get_win_rates(self, batch_id: str) -> list[dict[str, Any]]:
        return list(self.request("GET", f"/stats/win-rates/{batch_id}"))

    def list_people(self) -> list[dict[str, Any]]:
        return list(self.request("GET", "/users"))

    def decide(self, person_id: str, verdict: str, reason: str) -> dict[str, Any]:
        """Set a labeler's status; `verdict` is admit, decline or pause."""
        return dict(self.request("POST", f"/users/{person_id}/decide", json={"verdict": verdict, "reason": reason}))

    def create_invite(self, **options: Any) -> str:
        return str(self.request("POST", "/invites", json=options)["token"])

    def is_ready(self) -> bool:
        try:
            return bool(self.http.get("/readyz").is_success)
        except httpx.TransportError:
            return False


class LabelerClient(BaseClient):
    """Client of one signed-in labeler, with the calls of the pages' scripts."""

    def redeem_invite(self, token: str, name: str, password: str) -> dict[str, Any]:
        """Redeem an invitation, agree to the consent text, and sign in."""
        consent_version = self.request("GET", "/consent")["version"]
        try:
            payload = {"token": token, "name": name, "password": password, "consent": consent_version}
            return self._store_csrf_token(self.request("POST", "/redeem", json=payload, idempotent=True))
        except ApiError as error:
            if error.code not in ("name_taken", "bad_link"):
                raise
            # The response to an earlier attempt may have been lost after the account was created.
            return self.sign_in(name, password)

    def sign_in(self, name: str, password: str) -> dict[str, Any]:
        payload = {"name": name, "password": password}
        return self._store_csrf_token(self.request("POST", "/sign-in", json=payload, idempotent=True))

    def _store_csrf_token(self, account: dict[str, Any]) -> dict[str, Any]:
        self.http.headers["X-CSRF-Token"] = account["csrf"]
        return account

    def get_account(self) -> dict[str, Any]:
        return dict(self.request("GET", "/me"))

    def read_instructions(self, purpose: str) -> None:
        """Confirm the latest version, trying quiz answers until all are right."""
        path = f"/instructions/{purpose}"
        instructions = self.request("GET", path)
        answers = [0] * len(instructions["quiz"])
        while not instructions["read"]:
            payload = {"version": instructions["version"], "answers": answers}
            result = self.request("POST", path, json=payload, idempotent=True)
            if result["passed"]:
                return
            for index in result["wrong"]:
                answers[index] = (answers[index] + 1) % len(instructions["quiz"][index]["options"])

    def claim_task(self, kind: str | None = None) -> dict[str, Any] | None:
        """Return the active task or claim the next one; None if no task is left."""
        task = self.request("POST", "/tasks/claim", json={"kind": kind} if kind else {}, idempotent=True)
        return None if task is None else dict(task)

    def save_draft(self, assignment_id: str, revision: int, payload: Mapping[str, Any]) -> int:
        """Save a draft that replaces `revision`; return the new revision."""
        headers, path = {"If-Match": str(revision)}, f"/assignments/{assignment_id}/draft"
        return int(self.request("PUT", path, json=dict(payload), headers=headers)["rev"])

    def submit(self, assignment_id: str, form: Mapping[str, Any], idempotency_key: str) -> dict[str, Any]:
        """Submit a form; repeated calls with one key create one submission."""
        headers, path = {"Idempotency-Key": idempotency_key}, f"/assignments/{assignment_id}/submit"
        return dict(self.request("POST", path, json=dict(form), headers=headers, idempotent=True))

    def skip(self, assignment_id: str, reason: str, note: str = "") -> None:
        self.request("POST", f"/assignments/{assignment_id}/skip", json={"reason": reason, "note": note})

    def undo(self, assignment_id: str) -> dict[str, Any]:
        """Revert the last submission or skip of an assignment."""
        return dict(self.request("POST", f"/assignments/{assignment_id}/undo"))

    def get_history(self, before: str | None = None) -> dict[str, Any]:
        """Return one page of the labeler's submissions and skips; `before` is its cursor."""
        return dict(self.request("GET", "/me/history", params={"before": before} if before else {}))
