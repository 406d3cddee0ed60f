"""How long does each page take that an owner opens, on a site with many tasks?

    python bench/owner_pages.py --tasks 20000 --rankings 1200
    python bench/owner_pages.py --site site/           # an existing site, which is only read

Every GET route is asked in process: first on a site that was just started, then after this request has filled caches.
Processor seconds are of this process alone and, unlike the seconds of the clock, hardly change with what else the
machine does. A file is sent while it is read: what counts for it is the time to its first byte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient
from sqlalchemy import Engine, event, select
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from instructgpt.label.auth.dependencies import SESSION_COOKIE
from instructgpt.label.background import warm_up
from instructgpt.label.context import Site
from instructgpt.label.db.models import Batch, Person, Submission, Task, UserSession
from instructgpt.label.exchange.external_submissions import ExternalSubmissionImporter
from instructgpt.label.exchange.imports import ImportReport
from instructgpt.label.site_folder import create_site_folder, open_site
from instructgpt.label.tasks.batches import OverlapPolicy, create_batch_with_tasks, mark_batch_open
from instructgpt.label.web.app import create_app
from instructgpt.records import Completion, Prompt, Ranking

K = 4
REPETITIONS = 3
LIMIT_SECONDS = 0.5


def fill(site: Site, tasks: int, rankings: int) -> None:
    """Make an open batch of `tasks`, and two closed ones with half of the `rankings` of twenty people each.

    One of the two is an evaluation, whose page has results.
    """
    prompts = [Prompt(prompt=f"Question {number}: what is the best way?") for number in range(tasks)]
    completions = [
        Completion(prompt=prompt.prompt, completion=f"Answer {model}: it depends. " * 5, model=f"m{model}")
        for prompt in prompts
        for model in range(K)
    ]
    policy = OverlapPolicy(overlap=1, cohort_share=0, gold_share=0, repeat_share=0)
    with site.database.write() as db:
        mark_batch_open(db, create_batch_with_tasks(db, "large", "rank", "training", prompts, completions, policy))
    rng = Random(1)
    records = [
        Ranking(
            prompt=f"Imported question {number // 2}",
            completions=[f"Imported answer {model} to {number // 2}." for model in range(K)],
            ranks=rng.sample(range(1, K + 1), K),
            ratings=[rng.randint(1, 7) for _ in range(K)],
            models=[f"m{model}" for model in range(K)],
            labeler=f"elsewhere {number % 20}",
        )
        for number in range(rankings)
    ]
    for name, purpose in (("old", "training"), ("judged", "evaluation")):
        half = records[: rankings // 2] if purpose == "training" else records[rankings // 2 :]
        with site.database.write() as db:
            report = ImportReport()
            importer = ExternalSubmissionImporter(db, name, purpose, "training", report, "cli")
            importer.import_all([(f"line {number}", record) for number, record in enumerate(half, 1)])


class FirstByteTimer:
    """ASGI middleware that measures the time until the first byte of an answer's body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.seconds = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start, is_sent = time.perf_counter(), False

        async def send_and_measure(message: Message) -> None:
            nonlocal is_sent
            if message["type"] == "http.response.body" and not is_sent:
                is_sent, self.seconds = True, time.perf_counter() - start
            await send(message)

        await self.app(scope, receive, send_and_measure)


def sign_in(site: Site) -> tuple[TestClient, FirstByteTimer, str]:
    """Return a browser of a new owner, the timer of its answers, and the owner's id."""
    token = "token of the benchmark"
    with site.database.write() as db:
        owner = Person(name="benchmark", role="owner", status="active", pseudonym="benchmark")
        db.add(owner)
        db.flush()
        db.add(UserSession(token_hash=hashlib.sha256(token.encode()).hexdigest(), csrf="x", person_id=owner.id))
    app = FirstByteTimer(create_app(site))
    client = TestClient(app, follow_redirects=False, raise_server_exceptions=False)
    client.cookies.set(SESSION_COOKIE, token)
    return client, app, owner.id


def paths(site: Site, owner_id: str) -> Iterator[tuple[str, str]]:
    """Yield (route, path) of every GET route, its parameters filled from the largest batch and the last submission."""
    with site.database.read() as db:
        batches = db.scalars(select(Batch).order_by(Batch.id)).all()
        task = db.scalars(select(Task.id).where(Task.n_done > 0)).first() or db.scalars(select(Task.id)).first()
        labeler = db.scalars(select(Person).where(Person.role == "labeler")).first()
        submission = db.scalars(select(Submission.id)).first()
    person = labeler or site
    values: dict[str, list[str]] = {
        "batch_id": [batch.id for batch in batches],
        "task_id": [str(task)],
        "person_id": [getattr(person, "id", owner_id)],
        "labeler": [getattr(person, "id", owner_id)],
        "purpose": ["training", "evaluation"],
        "name": ["rankings", "labelers", "agreement"],
        "name:path": ["rankings.jsonl"],
        "kind": ["demographics"],
        "key": [batch.id for batch in batches],
        "assignment_id": [str(submission)],
    }
    for context in iter_route_contexts(create_app(site).routes):
        route = getattr(context, "path", "")
        if "GET" in (getattr(context, "methods", None) or ()) and route != "/sign-out":
            names = re.findall(r"{([\w:]+)}", route)
            for number in range(max([1, *(len(values.get(name, ["x"])) for name in names)])):
                path = route
                for name in names:
                    choices = values.get(name, ["x"])
                    path = path.replace("{" + name + "}", choices[number % len(choices)])
                yield route, path


def measure(site: Site, client: TestClient, timer: FirstByteTimer, route: str, path: str) -> dict[str, Any]:
    statements = 0

    def count(*_: object) -> None:
        nonlocal statements
        statements += 1

    engine: Engine = site.database.engine
    start = time.perf_counter()
    answer = client.get(path)
    first_seconds, first_byte_seconds = time.perf_counter() - start, timer.seconds
    while site.reports.is_computing:
        time.sleep(0.01)
    seconds, processor_seconds = [], []
    for repetition in range(REPETITIONS):
        if repetition == 0:
            event.listen(engine, "before_cursor_execute", count)
        start, own_start = time.perf_counter(), time.process_time()
        answer = client.get(path)
        seconds.append(time.perf_counter() - start)
        processor_seconds.append(time.process_time() - own_start)
        if repetition == 0:
            event.remove(engine, "before_cursor_execute", count)
    return {
        "route": route,
        "status": answer.status_code,
        "first_seconds": first_seconds,
        "first_byte_seconds": first_byte_seconds,
        "seconds": min(seconds),
        "slowest_seconds": max(seconds),
        "cpu_seconds": min(processor_seconds),
        "statements": statements,
        "kilobytes": len(answer.content) / 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--rankings", type=int, default=1_200)
    parser.add_argument("--database", help="an empty PostgreSQL database; SQLite when not given")
    parser.add_argument("--site", type=Path, help="an existing site; an owner named 'benchmark' is added to it")
    parser.add_argument("--out", type=Path, help="JSON file of all rows")
    parser.add_argument("--show", type=int, default=15, help="how many of the slowest to print")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.site or Path(folder) / "site"
        if options.site is None:
            create_site_folder(path, options.database)
        site = open_site(path)
        if options.site is None:
            start = time.perf_counter()
            fill(site, options.tasks, options.rankings)
            print(f"filled in {time.perf_counter() - start:.0f} s; load average {os.getloadavg()[0]:.0f}", flush=True)
        client, timer, owner_id = sign_in(site)
        warm_up()  # as `label serve` does
        rows = [measure(site, client, timer, route, path) for route, path in paths(site, owner_id)]
        site.database.close()
    rows.sort(key=lambda row: -max(row["cpu_seconds"], row["first_seconds"]))
    print("| route | status | first view | first byte | s (best of 3) | worst | CPU s | statements | kB |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows[: options.show]:
        names = ("first_seconds", "first_byte_seconds", "seconds", "slowest_seconds", "cpu_seconds")
        numbers = " | ".join(f"{row[name]:.2f}" for name in names)
        print(f"| `{row['route']}` | {row['status']} | {numbers} | {row['statements']} | {row['kilobytes']:.0f} |")
    slow = [row["route"] for row in rows if row["first_byte_seconds"] > LIMIT_SECONDS]
    print(f"{len(rows)} pages, {len(slow)} with a first byte after {LIMIT_SECONDS} s: {', '.join(slow) or 'none'}")
    if options.out is not None:
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
