"""Labelers at work on a site whose server is killed again and again: is anything lost, doubled, or given out too often?

    python bench/site_load.py --labelers 40 --tasks 1000 --kills 5
    python bench/site_load.py --labelers 40 --tasks 1000 --kills 5 --database postgresql://user@localhost/empty

The labelers are simulated and know the small world; everything else is real: HTTP, the server's process, SIGKILL, the
database. They pause between tasks for some seconds where people take minutes; without a pause each claim waits for
those of all the others.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path
from random import Random

from instructgpt.label.simulation.labelers import (
    SimulatedLabelerBehavior,
    SimulatedSiteLabeler,
    compare_logs_with_site,
    make_simulated_labelers,
    quantiles,
    register_labelers,
    run_simulated_labelers,
)
from instructgpt.label.simulation.server import SiteServer
from instructgpt.world import World

K = 4


def candidates(world: World, tasks: int) -> list[dict[str, str]]:
    """K different completions for each of so many different prompts: the right answer,
    and answers cut or to other questions.
    """
    prompts = [
        prompt.prompt for prompt in {each.prompt: each for each in world.prompts("reward", 12 * tasks)}.values()
    ][:tasks]
    gold = {text: world.demonstration(text) for text in prompts}
    rng = Random(0)
    made = []
    for text in prompts:
        answers = {
            gold[text] or "Nothing.",
            f"{gold[text]} I like it.",
            *(gold[other] for other in rng.sample(prompts, 6)),
            "No idea.",
        }
        answers.discard("")
        chosen = sorted(answers)
        rng.shuffle(chosen)
        made += [
            {"prompt": text, "completion": answer, "model": f"model-{place}"} for place, answer in enumerate(chosen[:K])
        ]
    return made


def run(
    folder: Path, database: str | None, labelers: int, tasks: int, kills: int, pause: float = 0, seed: int = 0
) -> dict[str, float]:
    """One load.

    Returns the counts of `simulate.check`, the claims' quantiles in milliseconds, kills, seconds and submissions a
    second.
    """
    world = World(seed)
    with SiteServer(folder, database) as server, server.connect() as service:
        batch = service.create_batch(
            "load", "rank", completions=candidates(world, tasks), policy={"repeat_share": 0, "seed": seed}, open=True
        )
        crowd = make_simulated_labelers(world, "training", labelers, seed)
        behavior = SimulatedLabelerBehavior(0.1, 0.02, mean_pause_s=pause, seed=seed)
        workers = register_labelers(server.base_url, service, crowd, behavior, patience=120)
        wanted = int(service.get_batch(batch["id"])["progress"]["wanted"])
        over, killed = threading.Event(), []
        breaker = threading.Thread(target=break_things, args=(server, workers, wanted, kills, over, killed))
        start = time.monotonic()
        breaker.start()
        try:
            diaries = run_simulated_labelers(workers)
        finally:
            over.set()
            breaker.join()
        seconds = time.monotonic() - start
        found: dict[str, float] = dict(compare_logs_with_site(service, diaries))
        progress = service.get_batch(batch["id"])["progress"]
    claims = [claim for diary in diaries for claim in diary.claim_seconds]
    found |= {
        "unfinished": progress["wanted"] - progress["done"],
        "kills": len(killed),
        "broken calls": sum(worker.client.transport_error_count for worker in workers),
    }
    found |= dict(zip(("p50", "p95", "p99"), (1000 * value for value in quantiles(claims)), strict=True))
    return found | {"seconds": seconds, "a second": found["submitted"] / seconds}


def break_things(
    server: SiteServer,
    workers: list[SimulatedSiteLabeler],
    wanted: int,
    kills: int,
    over: threading.Event,
    killed: list[int],
) -> None:
    """Kill the server whenever another part of the work is done, and start it again."""
    for number in range(1, kills + 1):
        while sum(len(worker.log.submitted_forms) for worker in workers) < wanted * number / (kills + 1):
            if over.wait(0.02):
                return
        server.kill()
        killed.append(number)
        server.start()


def table(rows: dict[str, dict[str, float]]) -> str:
    """The results as a table for docs/explanation/results.md."""
    head = (
        "| database | submitted | kills | broken calls | lost | duplicate | over-assigned | claim p50 | p95 | p99 "
        "| "
        "a second |"
    )
    lines = [head, "|---|" + "---:|" * 10]
    for name, found in rows.items():
        counts = [
            f"{found[part]:,.0f}"
            for part in ("submitted", "kills", "broken calls", "lost", "duplicate", "over-assigned")
        ]
        times = [f"{found[part]:.0f} ms" for part in ("p50", "p95", "p99")]
        lines.append(f"| {' | '.join([name, *counts, *times, format(found['a second'], '.1f')])} |")
    return "\n".join(lines)


def main() -> None:
    """One run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--labelers", type=int, default=40)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument(
        "--pause",
        type=float,
        default=4,
        help="mean seconds between a labeler's tasks; 0 shows what the site can do at most",
    )
    parser.add_argument("--database", help="an empty PostgreSQL database; SQLite when not given")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder) / "site", given.database, given.labelers, given.tasks, given.kills, given.pause)
    print(table({"PostgreSQL" if given.database else "SQLite": found}))
    bad = {name: found[name] for name in ("lost", "changed", "duplicate", "over-assigned", "unfinished") if found[name]}
    raise SystemExit(f"not as it should be: {bad}" if bad else 0)


if __name__ == "__main__":
    main()
