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

from instructgpt.errors import BadInput, RunFailed

AGAIN = (429, 502, 503, 504)
"""Answers after which a little later it may work."""


class Refused(RunFailed):
    """The site said no: `status`, `code` (one word), and the sentence for people."""

    def __init__(self, status: int, code: str, message: str, detail: Mapping[str, Any]) -> None:
        super().__init__(f"the site answered {status} {code}: {message}")
        self.status, self.code, self.detail = status, code, dict(detail)


class Connection:
    """One program's or person's way to a site.

    Args:
        site: its address, such as `http://127.0.0.1:8000`.
        patience: seconds for which a call that does no harm twice is tried again.
        timeout: seconds that one try may take.
    """

    def __init__(self, site: str, key: str | None = None, patience: float = 60.0, timeout: float = 30.0) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {"Sec-Fetch-Site": "same-origin"}
        try:
            self.http = httpx.Client(base_url=site.rstrip("/") + "/api/v1", headers=headers, timeout=timeout)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise BadInput(f"{site}: no address of a site ({error})") from error
        self.site, self.patience, self.broken = site, patience, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self.http.close()

    def call(self, method: str, path: str, *, again: bool | None = None, **how: Any) -> Any:
        """What the site answers, as JSON; None for an empty answer.

        Args:
            again: whether the call may be sent twice; not said, it may when it only reads.

        Raises:
            Refused: the site said no.
            RunFailed: it cannot be reached, for as long as patience lasts.
        """
        may, until, pause = method == "GET" if again is None else again, time.monotonic() + self.patience, 0.05
        while True:
            try:
                answer = self.http.request(method, path, **how)
            except httpx.TransportError as error:
                self.broken += 1
                if not may or time.monotonic() >= until:
                    raise RunFailed(f"{self.site}: cannot be reached ({type(error).__name__}: {error}); does 'label serve' run?") from error
            else:
                if answer.status_code not in AGAIN or not may or time.monotonic() >= until:
                    return self._read(answer)
            time.sleep(pause)
            pause = min(2 * pause, 2.0)

    def _read(self, answer: httpx.Response) -> Any:
        if answer.is_success:
            return answer.json() if answer.content else None
        try:
            said = answer.json()
            refused = Refused(answer.status_code, str(said["error"]), str(said["message"]), said.get("detail") or {})
        except (ValueError, KeyError, TypeError):
            raise RunFailed(f"{self.site}: answered {answer.status_code}, not as a labelers' site does") from None
        raise refused


class Service(Connection):
    """What a program with a key does; scopes as in docs/label-api.md."""

    def put_prompt(self, prompt: Mapping[str, Any]) -> dict[str, Any]:
        """One prompt, new or by its `id`."""
        return dict(self.call("POST", "/prompts", json=dict(prompt), again=True))

    def import_prompts(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Many prompts; what became of each line."""
        return self._import("prompts", rows)

    def import_completions(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Many completions; what became of each line."""
        return self._import("completions", rows)

    def _import(self, what: str, rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        lines = ((json.dumps(dict(row), ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass") for row in rows)
        return dict(self.call("POST", f"/{what}:import", content=lines, headers={"Content-Type": "application/x-ndjson"}))

    def models(self) -> list[dict[str, Any]]:
        """The models whose completions are there."""
        return list(self.call("GET", "/models"))

    def batches(self) -> list[dict[str, Any]]:
        """All batches with their progress, the newest first."""
        return list(self.call("GET", "/batches"))

    def batch(self, key: str) -> dict[str, Any]:
        """One batch."""
        return dict(self.call("GET", f"/batches/{key}"))

    def make_batch(self, name: str, kind: str, **given: Any) -> dict[str, Any]:
        """A batch of `prompts`, `completions` or what is `stored`; see docs/label-api.md for the rest."""
        return dict(self.call("POST", "/batches", json={"name": name, "kind": kind, **given}))

    def open_batch(self, key: str) -> dict[str, Any]:
        """Labelers get its tasks from now on."""
        return dict(self.call("POST", f"/batches/{key}/open", again=True))

    def close_batch(self, key: str) -> dict[str, Any]:
        """Nobody is given a task of it any more."""
        return dict(self.call("POST", f"/batches/{key}/close", again=True))

    def tasks(self, batch: str) -> Iterator[dict[str, Any]]:
        """The tasks of a batch."""
        return self._pages(f"/batches/{batch}/tasks", "tasks")

    def submissions(self, since: int | None = None) -> Iterator[dict[str, Any]]:
        """Everything handed in, the oldest first."""
        return self._pages("/submissions", "submissions", {} if since is None else {"since": since})

    def _pages(self, path: str, what: str, wanted: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        cursor: dict[str, str] = {}
        while True:
            page = self.call("GET", path, params={"limit": 500, **(wanted or {}), **cursor})
            yield from page[what]
            if page["next"] is None:
                return
            cursor = {"after": page["next"]}

    def rows(self, name: str, use: str = "training", batches: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
        """The rows of one file of an export, as they come."""
        with self.http.stream("GET", f"/rows/{name}", params={"use": use, "batch": list(batches)}) as answer:
            if not answer.is_success:
                answer.read()
                self._read(answer)
            for line in answer.iter_lines():
                yield json.loads(line)

    def export(self, out: Path, *, poll: float = 0.1, **given: Any) -> dict[str, Any]:
        """Have an export made, fetch its files into a folder, going on where a download breaks off. Returns the job.

        Raises:
            RunFailed: the export failed, or the site cannot be reached.
        """
        job = self.call("POST", "/exports", json=given)
        while job["state"] == "running":
            time.sleep(poll)
            job = self.call("GET", f"/exports/{job['id']}")
        if job["state"] == "failed":
            raise RunFailed(f"the export failed: {job['error']}")
        for name in job["files"]:
            self._fetch(f"/exports/{job['id']}/files/{name}", out / name)
        return dict(job)

    def _fetch(self, path: str, file: Path) -> None:
        """A file, whole: each try goes on from what is there."""
        file.parent.mkdir(parents=True, exist_ok=True)
        part, until = file.with_name(f".{file.name}.part"), time.monotonic() + self.patience
        part.unlink(missing_ok=True)
        while not self._fetch_rest(path, part):
            if time.monotonic() >= until:
                raise RunFailed(f"{self.site}{path}: broke off again and again")
            time.sleep(0.2)
        part.replace(file)

    def _fetch_rest(self, path: str, part: Path) -> bool:
        """What of a file is not there yet; whether it is whole now."""
        there = part.stat().st_size if part.exists() else 0
        try:
            with self.http.stream("GET", path, headers={"Range": f"bytes={there}-"} if there else {}) as answer:
                if answer.status_code == 416:  # nothing is missing
                    return True
                if not answer.is_success:
                    answer.read()
                    self._read(answer)
                with part.open("ab" if answer.status_code == 206 else "wb") as opened:
                    opened.writelines(answer.iter_bytes())
        except httpx.TransportError:
            return False
        return True

    def agreement(self, batch: str | None = None) -> dict[str, Any]:
        """How far labelers agree."""
        return dict(self.call("GET", "/stats/agreement", params={"batch": batch} if batch else {}))

    def win_rates(self, batch: str) -> list[dict[str, Any]]:
        """What an evaluation that is closed came to."""
        return list(self.call("GET", f"/stats/win-rates/{batch}"))

    def people(self) -> list[dict[str, Any]]:
        """All accounts, by pseudonym."""
        return list(self.call("GET", "/users"))

    def decide(self, person: str, verdict: str, reason: str) -> dict[str, Any]:
        """Admit, decline or pause a labeler."""
        return dict(self.call("POST", f"/users/{person}/decide", json={"verdict": verdict, "reason": reason}))

    def invite(self, **given: Any) -> str:
        """The token of a new invitation."""
        return str(self.call("POST", "/invites", json=given)["token"])

    def is_ready(self) -> bool:
        """Whether the site answers and its database is well."""
        try:
            return bool(self.http.get("/readyz").is_success)
        except httpx.TransportError:
            return False


class Labeler(Connection):
    """What somebody who works does: the calls of the pages' scripts."""

    def redeem(self, token: str, name: str, password: str) -> dict[str, Any]:
        """Use an invitation, agreeing to the consent text, and be signed in."""
        consent = self.call("GET", "/consent")["version"]
        try:
            given = {"token": token, "name": name, "password": password, "consent": consent}
            return self._known(self.call("POST", "/redeem", json=given, again=True))
        except Refused as refused:
            if refused.code not in ("name_taken", "bad_link"):
                raise
            return self.sign_in(name, password)  # the answer to the first try was lost on its way

    def sign_in(self, name: str, password: str) -> dict[str, Any]:
        """Sign in with a password."""
        return self._known(self.call("POST", "/sign-in", json={"name": name, "password": password}, again=True))

    def _known(self, me: dict[str, Any]) -> dict[str, Any]:
        self.http.headers["X-CSRF-Token"] = me["csrf"]
        return me

    def me(self) -> dict[str, Any]:
        """Who is signed in."""
        return dict(self.call("GET", "/me"))

    def read_instructions(self, purpose: str) -> None:
        """Read the newest version and answer its quiz until nothing is wrong."""
        text = self.call("GET", f"/instructions/{purpose}")
        answers = [0] * len(text["quiz"])
        while not text["read"]:
            said = self.call("POST", f"/instructions/{purpose}", json={"version": text["version"], "answers": answers}, again=True)
            if said["passed"]:
                return
            for number in said["wrong"]:
                answers[number] = (answers[number] + 1) % len(text["quiz"][number]["options"])

    def claim(self, kind: str | None = None) -> dict[str, Any] | None:
        """The next task, or the one in hand; None when there is nothing to do."""
        return self.call("POST", "/tasks/claim", json={"kind": kind} if kind else {}, again=True)  # type: ignore[no-any-return]

    def save_draft(self, assignment: str, rev: int, payload: Mapping[str, Any]) -> int:
        """Keep what there is; the new revision."""
        answer = self.call("PUT", f"/assignments/{assignment}/draft", json=dict(payload), headers={"If-Match": str(rev)})
        return int(answer["rev"])

    def submit(self, assignment: str, form: Mapping[str, Any], key: str) -> dict[str, Any]:
        """Hand in; the same key never hands in twice."""
        headers = {"Idempotency-Key": key}
        return dict(self.call("POST", f"/assignments/{assignment}/submit", json=dict(form), headers=headers, again=True))

    def skip(self, assignment: str, reason: str, note: str = "") -> None:
        """Hand a task back."""
        self.call("POST", f"/assignments/{assignment}/skip", json={"reason": reason, "note": note})

    def undo(self, assignment: str) -> dict[str, Any]:
        """Take back the last step."""
        return dict(self.call("POST", f"/assignments/{assignment}/undo"))

    def history(self, before: str | None = None) -> dict[str, Any]:
        """What one handed in and skipped."""
        return dict(self.call("GET", "/me/history", params={"before": before} if before else {}))
