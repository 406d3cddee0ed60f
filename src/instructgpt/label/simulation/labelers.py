"""Simulated labelers of the synthetic world, working on a running site through the API of its pages.

instructgpt label simulate --site http://127.0.0.1:8000 --key igl_… --labelers 5

They redeem an invitation, read the instructions, and claim, draft and submit until no task is left. Some submit twice
or abandon a task and return to it, and all retry while the server restarts. Each logs what the site confirmed, so that
`compare_logs_with_site` detects lost, changed or duplicate submissions and tasks assigned too often.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random
from typing import Any

from instructgpt.errors import InputError, RunError
from instructgpt.label.client import ApiError, LabelerClient, OwnerClient
from instructgpt.label.configs import API_KEY_VARIABLE, SimulateConfig
from instructgpt.label.tasks.forms import CONDITIONAL_LABELS
from instructgpt.records import Cohort, Completion, Prompt, Ranking, Record, write_records
from instructgpt.world import SimulatedLabelers, World
from instructgpt.world.labelers import LABELER_NOISE

_PASSWORD_TEMPLATE = "simulated {name} of seed {seed}"


class SubmittedForm(Record):
    """A submission that the site confirmed."""

    labeler: str
    assignment: str
    kind: str
    submission: str
    surplus: bool
    form: dict[str, Any]


@dataclass
class SimulatedLabelerLog:
    submitted_forms: list[SubmittedForm] = field(default_factory=list)
    claim_seconds: list[float] = field(default_factory=list)
    """Durations of the claims without a transport error."""
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class SimulatedLabelerBehavior:
    duplicate_rate: float = 0.0
    abandon_rate: float = 0.0
    draft_rate: float = 0.3
    mean_pause_s: float = 0.0
    max_submissions: int | None = None
    seed: int = 0


class SimulatedSiteLabeler:
    """One labeler with a signed-in client; `simulator` is a cohort of this labeler, deterministic given its seed."""

    def __init__(self, client: LabelerClient, simulator: SimulatedLabelers, behavior: SimulatedLabelerBehavior) -> None:
        self.client, self.simulator, self.behavior = client, simulator, behavior
        self.log = SimulatedLabelerLog()
        self.rng = Random(f"{behavior.seed} {simulator.labelers[0].name} manners")

    def run(self) -> SimulatedLabelerLog:
        """Work until no task is left or the maximum is reached. Raises RunError if the site refuses or stays away."""
        while self.behavior.max_submissions is None or len(self.log.submitted_forms) < self.behavior.max_submissions:
            task = self._claim()
            if task is None:
                break
            self._complete_task(task)
            if self.behavior.mean_pause_s:
                time.sleep(self.rng.expovariate(1 / self.behavior.mean_pause_s))
        return self.log

    def _claim(self) -> dict[str, Any] | None:
        errors_before, start = self.client.transport_error_count, time.perf_counter()
        try:
            task = self.client.claim_task()
        except ApiError as error:
            if error.code != "read_instructions":
                raise
            self.client.read_instructions(error.detail["purpose"])
            return self._claim()
        if self.client.transport_error_count == errors_before:
            self.log.claim_seconds.append(time.perf_counter() - start)
        return task

    def _complete_task(self, task: Mapping[str, Any]) -> None:
        assignment_id = str(task["assignment"])
        form = self.build_form(task)
        if form is None:
            self.client.skip(assignment_id, "too_specialised")
            self.log.counts["skipped"] += 1
            return
        if self.rng.random() < self.behavior.abandon_rate:
            self.log.counts["abandoned"] += 1
            reclaimed = self._claim() or {}  # a claim within the lease must return the same assignment
            if reclaimed.get("assignment") != assignment_id:
                raise RunError(f"{assignment_id}: active, but a second claim returned {reclaimed.get('assignment')}")
        if self.rng.random() < self.behavior.draft_rate:
            self._save_draft(task, form)
        idempotency_key = f"{assignment_id}-{self.rng.getrandbits(64):016x}"
        receipt = self.client.submit(assignment_id, form, idempotency_key)
        if self.rng.random() < self.behavior.duplicate_rate:
            duplicate_receipt = self.client.submit(assignment_id, form, idempotency_key)
            self.log.counts["submitted twice"] += 1
            if duplicate_receipt["submission"] != receipt["submission"]:
                raise RunError(f"{assignment_id}: one idempotency key created two submissions")
        self.log.submitted_forms.append(
            SubmittedForm(
                labeler=self.simulator.labelers[0].name,
                assignment=assignment_id,
                kind=str(task["kind"]),
                submission=receipt["submission"],
                surplus=receipt["surplus"],
                form=form,
            )
        )

    def _save_draft(self, task: Mapping[str, Any], form: Mapping[str, Any]) -> None:
        """Save a draft as the page does; the conflict of a retried save that had succeeded is no failure."""
        revision = int((task["draft"] or {"rev": 0})["rev"])
        try:
            self.client.save_draft(str(task["assignment"]), revision, {**form, "note": "half"})
        except RunError:
            self.log.counts["drafts not saved"] += 1

    def build_form(self, task: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the labeler's form, or None for a prompt that is not from their world."""
        build: Callable[[Mapping[str, Any]], dict[str, Any]] = getattr(self, f"_{task['kind']}")
        try:
            return {"kind": task["kind"], "active_ms": self.rng.randrange(5_000, 300_000)} | build(task)
        except InputError:
            return None

    def _rank(self, task: Mapping[str, Any]) -> dict[str, Any]:
        prompt, rows = task["prompt"], task["completions"]
        completions = [Completion(prompt=prompt, completion=row["text"], model=row["id"]) for row in rows]
        return ranking_to_form(self.simulator.rank([completions])[0])

    def _demonstrate(self, task: Mapping[str, Any]) -> dict[str, Any]:
        text = self.simulator.demonstrate([Prompt(prompt=task["prompt"])])[0].completion
        return {"text": text, "meant_empty": not text.strip()}

    def _review(self, task: Mapping[str, Any]) -> dict[str, Any]:
        use_case = self.simulator.world.task(task["prompt"]).content.use_case
        labels = {"closed_domain": use_case == "closed_qa"}
        return {"use_case": use_case, "personal_data": False, "sensitive": False, "labels": labels}

    def _write(self, task: Mapping[str, Any]) -> dict[str, Any]:
        brief, world = task["brief"] or {}, self.simulator.world
        use_case, form = brief.get("use_case"), brief.get("form", "plain")
        prompt = self.rng.choice([row for row in world.prompts("sft", 200) if use_case in (None, row.use_case)])
        examples = [[prompt.prompt, world.demonstration(prompt.prompt)]] if form == "few_shot" else []
        return {"form": form, "text": prompt.prompt, "use_case": prompt.use_case, "examples": examples}


def ranking_to_form(ranking: Ranking) -> dict[str, Any]:
    """Convert a ranking, with completion ids as `models`, to a form. Only conditional labels may be not applicable."""
    assert ranking.models is not None
    assert ranking.ratings is not None
    assert ranking.labels is not None
    tiers: dict[int, list[str]] = {rank: [] for rank in sorted(set(ranking.ranks))}
    ratings = []
    columns = (ranking.models, ranking.ranks, ranking.ratings, ranking.labels)
    for completion, rank, rating, answers in zip(*columns, strict=True):
        tiers[rank].append(completion)
        labels = {name: yes for name, yes in answers.items() if yes is not None or name in CONDITIONAL_LABELS}
        ratings.append({"completion": completion, "rating": rating, "labels": labels})
    return {"ratings": ratings, "tiers": list(tiers.values())}


# ---------------------------------------------------------------- groups of labelers


def make_simulated_labelers(
    world: World, cohort: Cohort, count: int, seed: int = 0, noise: float = LABELER_NOISE
) -> list[SimulatedLabelers]:
    simulators = []
    for person in SimulatedLabelers(world, cohort, labeler_count=count, seed=seed, noise=noise).labelers:
        simulator = SimulatedLabelers(world, cohort, labeler_count=1, seed=seed, noise=noise)
        simulator.labelers = [person]
        simulators.append(simulator)
    return simulators


def register_labelers(
    base_url: str,
    owner_client: OwnerClient,
    simulators: Sequence[SimulatedLabelers],
    behavior: SimulatedLabelerBehavior,
    patience: float,
) -> list[SimulatedSiteLabeler]:
    """Sign up all labelers with one invitation, and admit those in screening."""
    invite = {"cohort": simulators[0].cohort, "max_uses": len(simulators), "note": "simulated labelers"}
    token = owner_client.create_invite(role="labeler", **invite)
    existing_ids = {person["id"] for person in owner_client.list_people()}
    labelers, seed = [], behavior.seed
    for simulator in simulators:
        client, name = LabelerClient(base_url, patience=patience), f"{simulator.labelers[0].name} of seed {seed}"
        client.redeem_invite(token, name, _PASSWORD_TEMPLATE.format(name=name, seed=seed))
        labelers.append(SimulatedSiteLabeler(client, simulator, behavior))
    for person in owner_client.list_people():
        if person["id"] not in existing_ids and person["status"] == "screening":
            owner_client.decide(person["id"], "admit", "simulated labelers need no screening")
    return labelers


def run_simulated_labelers(labelers: Sequence[SimulatedSiteLabeler]) -> list[SimulatedLabelerLog]:
    """Run all labelers concurrently and close their clients. Raises the first labeler's error."""
    try:
        with ThreadPoolExecutor(len(labelers)) as executor:
            return [future.result() for future in [executor.submit(labeler.run) for labeler in labelers]]
    finally:
        for labeler in labelers:
            labeler.client.close()


def compare_logs_with_site(owner_client: OwnerClient, logs: Sequence[SimulatedLabelerLog]) -> dict[str, int]:
    """Count the labelers' submissions, those the site lost, changed or duplicated, and the tasks assigned too often."""
    stored = {row["id"]: row for row in owner_client.iter_submissions()}
    forms = [form for log in logs for form in log.submitted_forms]
    stored_forms = [form for form in forms if form.submission in stored]
    current = [row for row in stored.values() if row["replaced_at"] is None]
    assignments = {row["assignment"] for row in current}
    counted_by_task = Counter(row["task"] for row in current if not row["surplus"] and row["round"] == 0)
    tasks = {task["id"]: task for batch in owner_client.list_batches() for task in owner_client.iter_tasks(batch["id"])}
    over_assigned = sum(max(0, counted_by_task[key] - task["overlap"]) for key, task in tasks.items())
    over_assigned += sum(task["n_open"] + task["n_done"] > task["overlap"] for task in tasks.values())
    return {
        "submitted": len(forms),
        "lost": len(forms) - len(stored_forms),
        "changed": sum(not forms_match(form.form, stored[form.submission]["form"]) for form in stored_forms),
        "duplicate": len(current) - len(assignments),
        "over-assigned": over_assigned,
    }


def forms_match(sent: Mapping[str, Any], stored: Mapping[str, Any]) -> bool:
    """Compare a sent form with the stored one, ignoring empty tiers and the order within a tier."""
    for name, value in sent.items():
        stored_value = stored.get(name)
        if name == "tiers":
            if [set(tier) for tier in value if tier] != [set(tier) for tier in stored_value or () if tier]:
                return False
        elif name == "ratings":
            by_completion = {row["completion"]: (row["rating"], row["labels"]) for row in stored_value or ()}
            if any(by_completion[row["completion"]] != (row["rating"], row["labels"]) for row in value):
                return False
        elif name in ("kind", "text", "use_case") and name in stored and stored_value != value:
            return False
    return True


def quantiles(values: Sequence[float], shares: Sequence[float] = (0.5, 0.95, 0.99)) -> Iterator[float]:
    """Yield the smallest value that is at least as large as each share of the values; nothing without values."""
    ordered = sorted(values)
    if ordered:
        yield from (ordered[max(0, math.ceil(share * len(ordered)) - 1)] for share in shares)


def main(config: SimulateConfig) -> None:
    """Run simulated labelers on a site and check what it stored. Raises InputError, RunError."""
    key = config.key or os.environ.get(API_KEY_VARIABLE)
    if not key:
        raise InputError(
            "--key is missing: create an API key with the scopes read, write and admin on the site's data page, "
            f"or set {API_KEY_VARIABLE}"
        )
    world = World(config.seed)
    simulators = make_simulated_labelers(world, config.cohort, config.labelers, config.seed, config.noise)
    with OwnerClient(config.site, key, patience=config.patience) as owner_client:
        start = time.monotonic()
        behavior = SimulatedLabelerBehavior(
            config.double_clicks, config.walk_aways, max_submissions=config.tasks, seed=config.seed
        )
        labelers = register_labelers(config.site, owner_client, simulators, behavior, config.patience)
        logs = run_simulated_labelers(labelers)
        counts = compare_logs_with_site(owner_client, logs)
    if config.out is not None:
        write_records(config.out, [form for log in logs for form in log.submitted_forms])
    claim_seconds = [claim for log in logs for claim in log.claim_seconds]
    counts["skipped"] = sum(log.counts["skipped"] for log in logs)
    summary = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"{config.labelers} labelers, {time.monotonic() - start:.1f} s: {summary}")
    if counts["skipped"] and not counts["submitted"]:
        print("simulated labelers know only the prompts of the synthetic world of --seed; they skipped all others")
    latencies = ", ".join(f"{1000 * value:.0f}" for value in quantiles(claim_seconds))
    print(f"claim latency in ms at p50, p95, p99: {latencies}")
    if counts["lost"] or counts["changed"] or counts["duplicate"] or counts["over-assigned"]:
        raise RunError("the site lost, changed or duplicated submissions, or assigned tasks too often; see the counts")
