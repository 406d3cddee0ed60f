"""Users of the playground beside labelers on one site whose server is killed: nothing lost, nothing without consent.

    python bench/playground_load.py --users 50 --labelers 40 --tasks 200 --kills 5

Users and labelers are simulated and the endpoint's models answer by rule; HTTP, the server's process, SIGKILL and the
database are real. Every user keeps a list of what was acknowledged, which is compared with the tables afterwards.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from uuid import uuid4

import httpx
from site_load import break_things, candidates
from sqlalchemy import select

from instructgpt.label.db.models import Base, PlaygroundAnswer, PlaygroundFeedback, PlaygroundTurn
from instructgpt.label.playground.users import ensure_playground_link
from instructgpt.label.simulation.labelers import (
    SimulatedLabelerBehavior,
    compare_logs_with_site,
    make_simulated_labelers,
    register_labelers,
    run_simulated_labelers,
)
from instructgpt.label.simulation.server import SiteServer
from instructgpt.label.site_folder import open_site
from instructgpt.world import World

sys.path.append(str(Path(__file__).parent.parent / "tests"))
PATIENCE_S = 180.0


@dataclass
class SimulatedUser:
    """One browser, and what the site acknowledged to it."""

    url: str
    link: str
    rng: Random
    messages: int
    agrees: bool = False
    stored: dict[str, tuple[str, list[str]]] = field(default_factory=dict)  # key -> message, displayed answers
    ranked: dict[str, dict[str, int]] = field(default_factory=dict)
    private_words: list[str] = field(default_factory=list)  # sent without an agreement, or excluded
    broken: int = 0

    def run(self) -> None:
        with httpx.Client(base_url=self.url, headers={"Sec-Fetch-Site": "same-origin"}, timeout=60) as self.client:
            self.call("GET", f"/playground/join/{self.link}")
            if self.agrees:
                self.call("POST", "/playground/agree", data={"version": "1"})
            for _ in range(self.messages):
                self.converse()

    def call(self, method: str, path: str, **options: object) -> httpx.Response:
        """Call until the server answers: it may be killed, busy, or limit the rate."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                answer = self.client.request(method, path, **options)
                if answer.status_code not in (429, 502, 503):
                    return answer
            except httpx.HTTPError:
                self.broken += 1
            assert time.monotonic() < deadline, f"no answer from {path}"
            time.sleep(0.1 + 0.4 * self.rng.random())

    def converse(self) -> None:
        word = f"word{self.rng.getrandbits(64):016x}"
        body = {
            "key": str(uuid4()),
            "messages": [{"role": "user", "content": word}],
            "answers": self.rng.choice([1, 2, 4]),
        }
        event = None
        while event is None:  # the same key each time: a turn that was stored before the kill is not stored again
            answer = self.call("POST", "/api/v1/playground/turns", json=body)
            assert answer.status_code == 200, answer.text
            events = [json.loads(line[5:]) for line in answer.text.splitlines() if line.startswith("data:")]
            event = events[-1] if events and events[-1].get("done") and events[-1].get("reason") != "failed" else None
        assert event["stored"] is self.agrees, event
        if not self.agrees:
            self.private_words.append(word)
            return
        texts = [""] * events[0]["answers"]
        for part in events:
            if "text" in part:
                texts[part["answer"]] += part["text"]
        self.stored[body["key"]] = (word, texts)
        chance = self.rng.random()
        path = f"/api/v1/playground/turns/{body['key']}"
        if chance < 0.15:
            answer = self.call("POST", f"{path}/exclude")
            assert answer.status_code == 200
            del self.stored[body["key"]]
            self.private_words.append(word)
        elif chance < 0.8 and len(event["ids"]) > 1:
            ranks = {answer_id: self.rng.randint(1, 2) for answer_id in event["ids"].values()}
            answer = self.call("POST", f"{path}/feedback", json={"kind": "ranking", "ranks": ranks})
            assert answer.status_code == 200, answer.text
            levels = sorted(set(ranks.values()))
            self.ranked[body["key"]] = {name: 1 + levels.index(rank) for name, rank in ranks.items()}


def run(
    folder: Path, database: str | None, users: int, labelers: int, tasks: int, kills: int, messages: int = 6
) -> dict[str, float]:
    """One load. Returns counts of what was lost, changed, doubled or stored without consent, and of the work."""
    from support.openai_server import openai_server

    world, rng = World(0), Random(0)
    with openai_server(delay_s=0.01) as endpoint:
        options = ("--endpoint", endpoint.url)
        with SiteServer(folder, database, options=options) as server, server.connect() as service:
            service.create_batch(
                "load", "rank", completions=candidates(world, tasks), policy={"repeat_share": 0}, open=True
            )
            crowd = make_simulated_labelers(world, "training", labelers, 0)
            workers = register_labelers(
                server.base_url, service, crowd, SimulatedLabelerBehavior(0.1, 0.02, seed=0), patience=PATIENCE_S
            )
            wanted = sum(batch["progress"]["wanted"] for batch in service.list_batches())
            link = find_link(folder)
            people = [
                SimulatedUser(server.base_url, link, Random(number), messages, agrees=rng.random() < 0.7)
                for number in range(users)
            ]
            over, killed, failures = threading.Event(), [], []
            breaker = threading.Thread(target=break_things, args=(server, workers, wanted, kills, over, killed))
            threads = [threading.Thread(target=guarded, args=(person.run, failures)) for person in people]
            start = time.monotonic()
            for thread in (breaker, *threads):
                thread.start()
            logs = run_simulated_labelers(workers)
            for thread in threads:
                thread.join()
            over.set()
            breaker.join()
            found: dict[str, float] = dict(compare_logs_with_site(service, logs))
            seconds = time.monotonic() - start
        assert not failures, failures
    found |= compare_users_with_site(folder, people)
    return found | {"kills": len(killed), "broken calls": sum(person.broken for person in people), "seconds": seconds}


def guarded(work: object, failures: list[str]) -> None:
    try:
        work()  # type: ignore[operator]
    except BaseException as error:
        failures.append(f"{type(error).__name__}: {error}")
        raise


def find_link(folder: Path) -> str:
    site = open_site(folder)
    try:
        with site.database.write() as db:
            return ensure_playground_link(db).token
    finally:
        site.database.close()


def compare_users_with_site(folder: Path, people: list[SimulatedUser]) -> dict[str, float]:
    """Compare the users' lists with the tables."""
    site = open_site(folder)
    counts: Counter[str] = Counter()
    try:
        assert site.database.purge_deleted()
        with site.database.read() as db:
            turns = Counter(turn.key for turn in db.scalars(select(PlaygroundTurn)))
            rows = {turn.key: turn for turn in db.scalars(select(PlaygroundTurn)) if turn.state != "erased"}
            texts = "\n".join(str(row) for table in Base.metadata.sorted_tables for row in db.execute(select(table)))
            for person in people:
                counts["turns"] += len(person.stored)
                for key, (word, displayed) in person.stored.items():
                    turn = rows.get(key)
                    if turn is None:
                        counts["lost turns"] += 1
                        continue
                    answers = db.scalars(
                        select(PlaygroundAnswer)
                        .where(PlaygroundAnswer.turn_id == turn.id)
                        .order_by(PlaygroundAnswer.position)
                    )
                    is_same = turn.messages[-1]["content"] == word and [row.text for row in answers] == displayed
                    counts["changed turns"] += not is_same
                for key, ranks in person.ranked.items():
                    counts["rankings"] += 1
                    feedback = db.scalars(
                        select(PlaygroundFeedback).where(
                            PlaygroundFeedback.turn_id == rows[key].id, PlaygroundFeedback.replaced_at.is_(None)
                        )
                    ).all()
                    counts["lost rankings"] += [row.value["ranks"] for row in feedback] != [ranks]
                counts["without consent"] += sum(word in texts for word in person.private_words)
                counts["private"] += len(person.private_words)
            counts["double turns"] += sum(count > 1 for count in turns.values())
            known = {key for person in people for key in person.stored}
            counts["unknown turns"] += len(set(rows) - known)
        if site.database.is_sqlite:
            content = (
                b"".join(path.read_bytes() for path in folder.glob("site.db*")) + (folder / "server.log").read_bytes()
            )
            counts["in files"] = sum(word.encode() in content for person in people for word in person.private_words)
    finally:
        site.database.close()
    return dict(counts)


def main() -> None:
    """One run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--labelers", type=int, default=40)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--database", help="an empty PostgreSQL database; SQLite by default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(
            Path(folder) / "site",
            arguments.database,
            arguments.users,
            arguments.labelers,
            arguments.tasks,
            arguments.kills,
        )
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
