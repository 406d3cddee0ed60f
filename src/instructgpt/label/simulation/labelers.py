"""Simulated labelers of the small world at work on a running site, through the same API as people's pages.

instructgpt label simulate --site http://127.0.0.1:8000 --key igl_… --labelers 5

They redeem an invitation, read the instructions, and claim, draft and hand in until there is nothing left. Some click twice, some walk
away from a task and come back to it, and all of them go on when the server dies and returns. Each writes down what the site
confirmed, so that `check` can say afterwards whether anything was lost, doubled or given out too often.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from pydantic import Field

from instructgpt.config import Options
from instructgpt.errors import BadInput, RunFailed
from instructgpt.label.client import Labeler, Refused, Service
from instructgpt.label.tasks.forms import CONDITIONAL
from instructgpt.records import Cohort, Completion, Prompt, Ranking, Record, write_records
from instructgpt.world import SimulatedLabelers, World
from instructgpt.world.labelers import NOISE

KEY_VARIABLE = "INSTRUCTGPT_LABEL_KEY"
PASSWORD = "simulated {name} of seed {seed}"


class SimulateConfig(Options):
    """Who works, and how badly they behave."""

    stage: ClassVar[str] = "label simulate"

    site: str = Field(description="the address of a running site")
    key: str | None = Field(None, description=f"an API key with the scopes read, write and admin; or set {KEY_VARIABLE}")
    labelers: int = Field(5, ge=1, le=500, description="how many work at the same time")
    cohort: Cohort = Field("training", description="what they are; held-out ones need not be admitted")
    tasks: int | None = Field(None, ge=1, description="how many each hands in at most")
    double_clicks: float = Field(0.1, ge=0, le=1, description="the share of submissions that are sent twice")
    walk_aways: float = Field(0.05, ge=0, le=1, description="the share of tasks that a labeler leaves and comes back to")
    noise: float = Field(NOISE, ge=0, description="the standard deviation of their slips, in units of utility")
    seed: int = Field(0, ge=0, description="of everything they do, and of their world")
    patience: float = Field(120.0, gt=0, description="seconds for which a labeler waits for a server that is gone")
    out: Path | None = Field(None, description="write what each handed in to this file, .jsonl")


class Handed(Record):
    """One submission that the site confirmed."""

    labeler: str
    assignment: str
    kind: str
    submission: str
    surplus: bool
    form: dict[str, Any]


@dataclass
class Diary:
    """What one labeler did, and how long claims took (seconds, those not interrupted)."""

    handed: list[Handed] = field(default_factory=list)
    claims: list[float] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Manners:
    """How somebody works."""

    double_clicks: float = 0.0
    walk_aways: float = 0.0
    drafts: float = 0.3
    pause: float = 0.0
    """Seconds between tasks, on average."""
    most: int | None = None
    seed: int = 0


class Worker:
    """One simulated person in front of the site. What they think of a text follows from the seed, whenever they see it.

    Args:
        me: a connection that is signed in.
        mind: the cohort with this one person in it.
    """

    def __init__(self, me: Labeler, mind: SimulatedLabelers, manners: Manners) -> None:
        self.me, self.mind, self.manners = me, mind, manners
        self.diary = Diary()
        self.rng = Random(f"{manners.seed} {mind.people[0].name} manners")

    def work(self) -> Diary:
        """Until nothing is left to do, or enough was done. Returns the diary.

        Raises:
            RunFailed: the site refused something that it should not have, or was away for too long.
        """
        while self.manners.most is None or len(self.diary.handed) < self.manners.most:
            task = self._claim()
            if task is None:
                break
            self._do(task)
            if self.manners.pause:
                time.sleep(self.rng.expovariate(1 / self.manners.pause))
        return self.diary

    def _claim(self) -> dict[str, Any] | None:
        broken, start = self.me.broken, time.perf_counter()
        try:
            task = self.me.claim()
        except Refused as refused:
            if refused.code != "read_instructions":
                raise
            self.me.read_instructions(refused.detail["purpose"])
            return self._claim()
        if self.me.broken == broken:
            self.diary.claims.append(time.perf_counter() - start)
        return task

    def _do(self, task: Mapping[str, Any]) -> None:
        held = str(task["assignment"])
        form = self.form(task)
        if form is None:
            self.me.skip(held, "too_specialised")
            self.diary.counts["skipped"] += 1
            return
        if self.rng.random() < self.manners.walk_aways:
            self.diary.counts["walked away"] += 1
            back = self._claim()  # whoever comes back within the lease finds what they left
            if back is None or back["assignment"] != held:
                raise RunFailed(f"{held}: was in hand, but a second claim gave {back and back['assignment']}")
        if self.rng.random() < self.manners.drafts:
            self._draft(task, form)
        key = f"{held}-{self.rng.getrandbits(64):016x}"
        done = self.me.submit(held, form, key)
        if self.rng.random() < self.manners.double_clicks:
            again = self.me.submit(held, form, key)
            self.diary.counts["clicked twice"] += 1
            if again["submission"] != done["submission"]:
                raise RunFailed(f"{held}: handing in twice with one key made two submissions")
        self.diary.handed.append(
            Handed(
                labeler=self.mind.people[0].name, assignment=held, kind=str(task["kind"]), submission=done["submission"],
                surplus=done["surplus"], form=form,
            )
        )  # fmt: skip

    def _draft(self, task: Mapping[str, Any], form: Mapping[str, Any]) -> None:
        """Save half of it, as the page does; one that was saved before the server died is followed, not refused."""
        rev = int((task["draft"] or {"rev": 0})["rev"])
        try:
            self.me.save_draft(str(task["assignment"]), rev, {**form, "note": "half"})
        except RunFailed:
            self.diary.counts["drafts not saved"] += 1

    def form(self, task: Mapping[str, Any]) -> dict[str, Any] | None:
        """What this person hands in; None for a prompt that is not of their world."""
        made: Callable[[Mapping[str, Any]], dict[str, Any]] = getattr(self, f"_{task['kind']}")
        try:
            return {"kind": task["kind"], "active_ms": self.rng.randrange(5_000, 300_000)} | made(task)
        except BadInput:
            return None

    def _rank(self, task: Mapping[str, Any]) -> dict[str, Any]:
        shown = task["completions"]
        (ranking,) = self.mind.rank([[Completion(prompt=task["prompt"], completion=each["text"], model=each["id"]) for each in shown]])
        return form_of_ranking(ranking)

    def _demonstrate(self, task: Mapping[str, Any]) -> dict[str, Any]:
        text = self.mind.demonstrate([Prompt(prompt=task["prompt"])])[0].completion
        return {"text": text, "meant_empty": not text.strip()}

    def _review(self, task: Mapping[str, Any]) -> dict[str, Any]:
        use_case = self.mind.world.task(task["prompt"]).content.use_case
        return {"use_case": use_case, "personal_data": False, "sensitive": False, "labels": {"closed_domain": use_case == "closed_qa"}}

    def _write(self, task: Mapping[str, Any]) -> dict[str, Any]:
        wanted = (task["brief"] or {}).get("use_case")
        prompts = [each for each in self.mind.world.prompts("sft", 200) if wanted in (None, each.use_case)]
        chosen = self.rng.choice(prompts)
        few_shot = (task["brief"] or {}).get("form") == "few_shot"
        examples = [[chosen.text, self.mind.world.demonstration(chosen.text)]] if few_shot else []
        return {"form": (task["brief"] or {}).get("form", "plain"), "text": chosen.text, "use_case": chosen.use_case, "examples": examples}


def form_of_ranking(ranking: Ranking) -> dict[str, Any]:
    """A ranking as the form of the page; `models` are the completions' ids. Labels that cannot be not applicable are answered."""
    assert ranking.models is not None
    assert ranking.ratings is not None
    assert ranking.labels is not None
    ids = ranking.models
    tiers = [[one for one, rank in zip(ids, ranking.ranks, strict=True) if rank == tier] for tier in sorted(set(ranking.ranks))]
    ratings = [
        {
            "completion": one,
            "rating": rating,
            "labels": {name: answer for name, answer in labels.items() if answer is not None or name in CONDITIONAL},
        }
        for one, rating, labels in zip(ids, ranking.ratings, ranking.labels, strict=True)
    ]
    return {"ratings": ratings, "tiers": tiers}


# ---------------------------------------------------------------- many of them


def minds(world: World, cohort: Cohort, count: int, seed: int = 0, noise: float = NOISE) -> list[SimulatedLabelers]:
    """People of a cohort, each alone."""
    found = []
    for person in SimulatedLabelers(world, cohort, people=count, seed=seed, noise=noise).people:
        mind = SimulatedLabelers(world, cohort, people=1, seed=seed, noise=noise)
        mind.people = [person]
        found.append(mind)
    return found


def join(site: str, service: Service, crowd: Sequence[SimulatedLabelers], seed: int, patience: float) -> list[Labeler]:
    """Everybody comes in by one invitation; those who would be screened are admitted."""
    token = service.invite(role="labeler", cohort=crowd[0].cohort, max_uses=len(crowd), note="simulated labelers")
    before = {person["id"] for person in service.people()}
    joined = []
    for mind in crowd:
        me, name = Labeler(site, patience=patience), f"{mind.people[0].name} of seed {seed}"
        me.redeem(token, name, PASSWORD.format(name=name, seed=seed))
        joined.append(me)
    for person in service.people():
        if person["id"] not in before and person["status"] == "screening":
            service.decide(person["id"], "admit", "simulated labelers know what is right")
    return joined


def work_together(workers: Sequence[Worker]) -> list[Diary]:
    """All of them at the same time, until each is done. Raises what the first of them raised."""
    with ThreadPoolExecutor(len(workers)) as crowd:
        return [each.result() for each in [crowd.submit(worker.work) for worker in workers]]


def check(service: Service, diaries: Sequence[Diary]) -> dict[str, int]:
    """Compare what labelers wrote down with what the site has: submissions lost, changed, doubled; tasks given out too often."""
    stored = {each["id"]: each for each in service.submissions()}
    handed = [each for diary in diaries for each in diary.handed]
    lost = sum(each.submission not in stored for each in handed)
    changed = sum(not same_form(each.form, stored[each.submission]["form"]) for each in handed if each.submission in stored)
    current = [each for each in stored.values() if each["replaced_at"] is None]
    doubled = sum(count - 1 for count in Counter(each["assignment"] for each in current).values())
    done = Counter(each["task"] for each in current if not each["surplus"] and each["round"] == 0)
    tasks = {task["id"]: task for batch in service.batches() for task in service.tasks(batch["id"])}
    over = sum(max(0, done[key] - task["overlap"]) for key, task in tasks.items())
    over += sum(task["n_open"] + task["n_done"] > task["overlap"] for task in tasks.values())
    return {"handed in": len(handed), "lost": lost, "changed": changed, "duplicate": doubled, "over-assigned": over}


def same_form(sent: Mapping[str, Any], stored: Mapping[str, Any]) -> bool:
    """Whether everything that was sent is stored as it was; tiers that are empty and the order within one say nothing."""
    for name, value in sent.items():
        there = stored.get(name)
        if name == "tiers":
            if [set(tier) for tier in value if tier] != [set(tier) for tier in there or () if tier]:
                return False
        elif name == "ratings":
            by_id = {each["completion"]: each for each in there or ()}
            if any(by_id[each["completion"]][part] != each[part] for each in value for part in ("rating", "labels")):
                return False
        elif name in ("kind", "text", "use_case") and name in stored and there != value:
            return False
    return True


def quantiles(values: Sequence[float], shares: Sequence[float] = (0.5, 0.95, 0.99)) -> Iterator[float]:
    """The smallest values that these shares of all do not exceed; nothing of nothing."""
    ordered = sorted(values)
    yield from (ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))] for share in shares if ordered)


def main(config: SimulateConfig) -> None:
    """Let a crowd work until nothing is left, and say what the site made of it. Raises BadInput, RunFailed."""
    key = config.key or os.environ.get(KEY_VARIABLE)
    if not key:
        raise BadInput(f"--key is missing: make one with the scopes read, write and admin on the site's data page, or set {KEY_VARIABLE}")
    world = World(config.seed)
    crowd = minds(world, config.cohort, config.labelers, config.seed, config.noise)
    with Service(config.site, key, patience=config.patience) as service:
        start = time.monotonic()
        joined = join(config.site, service, crowd, config.seed, config.patience)
        manners = Manners(config.double_clicks, config.walk_aways, most=config.tasks, seed=config.seed)
        workers = [Worker(me, mind, manners) for me, mind in zip(joined, crowd, strict=True)]
        try:
            diaries = work_together(workers)
        finally:
            for me in joined:
                me.close()
        found = check(service, diaries)
    if config.out is not None:
        write_records(config.out, [handed for diary in diaries for handed in diary.handed])
    claims = [claim for diary in diaries for claim in diary.claims]
    found["skipped"] = sum(diary.counts["skipped"] for diary in diaries)
    print(f"{config.labelers} labelers, {time.monotonic() - start:.1f} s: " + ", ".join(f"{count} {what}" for what, count in found.items()))
    if found["skipped"] and not found["handed in"]:
        print("they know the prompts of the small world of --seed only, and skipped all others")
    print("claims, milliseconds at p50, p95, p99: " + ", ".join(f"{1000 * value:.0f}" for value in quantiles(claims)))
    if found["lost"] or found["changed"] or found["duplicate"] or found["over-assigned"]:
        raise RunFailed("the site lost, changed, doubled or gave out too much; see the counts above")
