"""A team at work while the site is attacked and fed: is anything lost, and does anybody wait?

    python bench/site_attack.py --tasks 20000
    python bench/site_attack.py --tasks 20000 --database postgresql://user@localhost/empty

Forty labelers take about 20 s a ranking. First they work alone; then, at once, sign-in tries arrive at 50 a second for
30 s, `label import` brings 8,000 rankings and `label export --archive` reads everything. Labelers, attack, import and
server share one machine; the CPU seconds of each are printed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import httpx
from sqlalchemy import func, select

from instructgpt.label.auth import accounts, consent
from instructgpt.label.db.models import Assignment, InstructionsRead, Person, Submission, Task, current_time_ms
from instructgpt.label.simulation.labelers import quantiles
from instructgpt.label.simulation.server import SiteServer
from instructgpt.label.site_folder import open_site
from instructgpt.label.tasks import instructions

K = 4
HEADERS = {"Sec-Fetch-Site": "same-origin"}


@dataclass
class Measured:
    """Seconds and statuses of the labelers' requests in one phase."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {"home": [], "claim": []})
    statuses: Counter[int] = field(default_factory=Counter)


class Labeler:
    """A person with a browser, who works until the event."""

    def __init__(self, address: str, token: str, number: int, phases: list[Measured], pause: float) -> None:
        self.client = httpx.Client(base_url=address, headers=HEADERS, timeout=120)
        self.client.cookies.set("labeler_session", token)
        self.phases, self.pause, self.rng, self.number = phases, pause, Random(number), number
        self.submitted: list[str] = []

    def call(self, kind: str | None, method: str, path: str, **options) -> httpx.Response:
        """Send a request, again after a 503 as the pages do."""
        while True:
            phase, start = self.phases[-1], time.monotonic()
            try:
                answer = self.client.request(method, path, **options)
            except (
                httpx.TransportError
            ):  # an idle connection that the server closed meanwhile; every call is repeatable
                phase.statuses[0] += 1
                continue
            phase.statuses[answer.status_code] += 1
            if kind is not None:
                phase.seconds[kind].append(time.monotonic() - start)
            if answer.status_code != 503:
                return answer
            time.sleep(float(answer.headers["Retry-After"]))

    def work(self, over: threading.Event) -> None:
        over.wait(self.rng.uniform(0, self.pause))
        while not over.is_set():
            self.call("home", "GET", "/home")
            answer = self.call("claim", "POST", "/api/v1/tasks/claim")
            if answer.status_code == 200:
                task = answer.json()
                over.wait(self.rng.uniform(0.5, 1.5) * self.pause)
                ids = [each["id"] for each in task["completions"]]
                self.rng.shuffle(ids)
                ratings = [{"completion": name, "rating": self.rng.randint(1, 7)} for name in ids]
                form, key = (
                    {"ratings": ratings, "tiers": [[name] for name in ids]},
                    f"{task['assignment']}-{self.number}",
                )
                path = f"/api/v1/assignments/{task['assignment']}/submit"
                done = self.call(None, "POST", path, json=form, headers={"Idempotency-Key": key})
                if done.status_code == 200:
                    self.submitted.append(task["assignment"])


def attack(address: str, rate: int, seconds: float, statuses: multiprocessing.Queue) -> None:
    """Try to sign in with names that nobody has, `rate` times a second from many addresses."""
    found: Counter[int] = Counter()

    def attempt(number: int) -> None:
        form = {"name": f"nobody {number}", "password": "not the password"}
        headers = {**HEADERS, "X-Forwarded-For": f"10.{number >> 8 & 255}.{number & 255}.1"}
        try:
            found[client.post("/sign-in", data=form, headers=headers).status_code] += 1
        except httpx.TransportError:
            found[0] += 1

    start = time.monotonic()
    limits = httpx.Limits(max_connections=100)
    with httpx.Client(base_url=address, timeout=60, limits=limits) as client, ThreadPoolExecutor(100) as pool:
        for number in range(int(rate * seconds)):
            time.sleep(max(0.0, start + number / rate - time.monotonic()))
            pool.submit(attempt, number)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    statuses.put((dict(found), usage.ru_utime + usage.ru_stime))


def completions_file(folder: Path, tasks: int) -> Path:
    path = folder / "completions.jsonl"
    with path.open("w") as stream:
        for task in range(tasks):
            for model in range(K):
                text = f"Answer {model} to question {task}: " + "it depends on what is meant. " * (2 + model)
                record = {"prompt": f"Question {task}: what is the best way?", "completion": text, "model": f"m{model}"}
                stream.write(json.dumps(record | {"finish": "stop", "sampling": {}}) + "\n")
    return path


def rankings_file(folder: Path, count: int) -> Path:
    path, rng = folder / "rankings.jsonl", Random(1)
    with path.open("w") as stream:
        for number in range(count):
            completions = [f"Imported answer {each} to {number}." for each in range(K)]
            record = {"prompt": f"Imported question {number}", "completions": completions}
            ranks = rng.sample(range(1, K + 1), K)
            stream.write(json.dumps(record | {"ranks": ranks, "labeler": f"elsewhere {number % 20}"}) + "\n")
    return path


def command(*arguments: str | Path, niceness: int = 10) -> list[str]:
    label = ["nice", "-n", str(niceness), sys.executable, "-m", "instructgpt", "label"]
    return [*label, *map(str, arguments)]


def prepare(folder: Path, labelers: int) -> list[str]:
    """Admit the labelers, who have read everything. -> the tokens of their sessions."""
    site = open_site(folder)
    tokens = []
    with site.database.write() as db:
        for number in range(labelers):
            person = accounts.create_person(db, f"labeler {number}", "labeler", status="active")
            newest = instructions.get_latest_instructions(db, "training")
            if newest is not None:
                db.add(InstructionsRead(person_id=person.id, instructions_id=newest.id))
            tokens.append(accounts.create_user_session(db, person, "bench", current_time_ms())[0])
    with site.database.write() as db:
        if (text := consent.get_latest_consent_text(db)) is not None:
            for person in db.scalars(select(Person).where(Person.role == "labeler")):
                consent.record_consent(db, person, text.version)
    site.database.close()
    return tokens


def verify(folder: Path, labelers: list[Labeler], imported: int) -> dict[str, int]:
    site = open_site(folder)
    with site.database.read() as db:
        stored = Counter(db.scalars(select(Submission.assignment_id).where(Submission.replaced_at.is_(None))))
        submitted = [assignment for labeler in labelers for assignment in labeler.submitted]
        current = select(func.count()).select_from(Submission).join(Assignment).where(Submission.key == "import")
        over = select(func.count()).where(Task.n_open + Task.n_done > Task.overlap)
        found = {
            "submitted": len(submitted),
            "lost": sum(stored[assignment] == 0 for assignment in submitted),
            "duplicate": sum(count > 1 for count in stored.values()),
            "over-assigned": int(db.scalar(over) or 0),
            "not imported": imported - int(db.scalar(current) or 0),
        }
    site.database.close()
    return found


def run(
    folder: Path, database: str | None, tasks: int, labelers: int, rankings: int, pause: float, alone: float
) -> dict:
    with SiteServer(folder / "site", database, patience=300) as server:
        files = completions_file(folder, tasks), rankings_file(folder, rankings)
        plain = '{"overlap": 1, "cohort_share": 0, "gold_share": 0, "repeat_share": 0}'
        start = time.monotonic()
        options = ["--data", files[0], "--name", "load", "--policy", plain, "--open"]
        subprocess.run(command("import", "--site", folder / "site", *options, niceness=0), check=True)
        batch_seconds = time.monotonic() - start
        phases, over = [Measured()], threading.Event()
        tokens = prepare(folder / "site", labelers)
        people = [Labeler(server.base_url, token, number, phases, pause) for number, token in enumerate(tokens)]
        threads = [threading.Thread(target=person.work, args=(over,)) for person in people]
        for thread in threads:
            thread.start()
        time.sleep(alone)
        phases.append(Measured())
        own, context = os.times(), multiprocessing.get_context("spawn")
        answers = context.Queue()
        attacker = context.Process(target=attack, args=(server.base_url, 50, 30.0, answers))
        attacker.start()
        start = time.monotonic()
        importing = subprocess.Popen(command("import", "--site", folder / "site", "--data", files[1], "--name", "old"))
        archive = subprocess.Popen(
            command("export", "--site", folder / "site", "--archive", "--out", folder / "archive")
        )
        sign_ins, attack_cpu = answers.get()
        codes = [importing.wait(), archive.wait()]
        seconds = time.monotonic() - start
        spent = os.times()
        over.set()
        for thread in threads:
            thread.join()
    found = verify(folder / "site", people, rankings)
    return found | {
        "batch seconds": batch_seconds,
        "attack seconds": seconds,
        "codes": codes,
        "sign-ins": sign_ins,
        "attack cpu": attack_cpu,
        "labelers cpu": spent.user + spent.system - own.user - own.system,
        "phases": phases,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--labelers", type=int, default=40)
    parser.add_argument("--rankings", type=int, default=8_000)
    parser.add_argument("--pause", type=float, default=20, help="mean seconds of a ranking")
    parser.add_argument("--alone", type=float, default=60, help="seconds without an attack")
    parser.add_argument("--database", help="an empty PostgreSQL database; SQLite when not given")
    parser.add_argument("--out", type=Path, help="JSON file with all times, to which other runs may be compared")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        numbers = (options.tasks, options.labelers, options.rankings, options.pause, options.alone)
        found = run(Path(folder), options.database, *numbers)
    name = "PostgreSQL" if options.database else "SQLite"
    if options.out is not None:
        phases = [{"seconds": each.seconds, "statuses": each.statuses} for each in found["phases"]]
        record = {"database": name, "load average": os.getloadavg()} | found | {"phases": phases}
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"batch of {options.tasks:,} tasks: {found['batch seconds']:.0f} s beside nothing")
    print(
        "| database | phase | requests | 503 | other 5xx | home p50 / p95 | claim p50 / p95 |\n|---|---|---:|---:|---:|---:|---:|"
    )
    for title, phase in zip(("work alone", "attack, import, archive"), found["phases"], strict=True):
        times = [
            " / ".join(f"{1000 * value:.0f} ms" for value in list(quantiles(phase.seconds[kind]))[:2])
            for kind in ("home", "claim")
        ]
        wrong = sum(count for status, count in phase.statuses.items() if status >= 500 and status != 503)
        print(
            f"| {name} | {title} | {sum(phase.statuses.values())} | {phase.statuses[503]} | {wrong} | {times[0]} | {times[1]} |"
        )
    print(
        {key: value for key, value in found.items() if key != "phases"},
        [dict(phase.statuses) for phase in found["phases"]],
    )


if __name__ == "__main__":
    main()
