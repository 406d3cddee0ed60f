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

from instructgpt.config import CommandConfig
from instructgpt.errors import InputError, RunError
from instructgpt.label.client import ApiError, LabelerClient, OwnerClient
from instructgpt.label.tasks.forms import CONDITIONAL_LABELS
from instructgpt.records import Cohort, Completion, Prompt, Ranking, Record, write_records
from instructgpt.world import SimulatedLabelers, World
from instructgpt.world.labelers import LABELER_NOISE

_API_KEY_VARIABLE = "INSTRUCTGPT_LABEL_KEY"
_PASSWORD_TEMPLATE = "simulated {name} of seed {seed}"


class SimulateConfig(CommandConfig):
    """Who works, and how badly they behave."""

    stage: ClassVar[str] = "label simulate"

    site: str = Field(description="the address of a running site")
    key: str | None = Field(
        None, description=f"an API key with the scopes read, write and admin; or set {_API_KEY_VARIABLE}"
    )
    labelers: int = Field(5, ge=1, le=500, description="how many work at the same time")
    cohort: Cohort = Field("training", description="what they are; held-out ones need not be admitted")
    tasks: int | None = Field(None, ge=1, description="how many each hands in at most")
    double_clicks: float = Field(0.1, ge=0, le=1, description="the share of submissions that are sent twice")
    walk_aways: float = Field(
        0.05, ge=0, le=1, description="the share of tasks that a labeler leaves and comes back to"
    )
    noise: float = Field(LABELER_NOISE, ge=0, description="the standard deviation of their slips, in units of utility")
    seed: int = Field(0, ge=0, description="of everything they do, and of their world")
    patience: float = Field(120.0, gt=0, description="seconds for which a labeler waits for a server that is gone")
    out: Path | None = Field(None, description="write what each handed in to this file, .jsonl")


class SubmittedForm(Record):
    """One submission that the site confirmed."""

    labeler: str
    assignment: str
    kind: str
    submission: str
    surplus: bool
    form: dict[str, Any]


@dataclass
class SimulatedLabelerLog:
    """What one labeler did, and how long claims took (seconds, those not interrupted)."""

    submitted_forms: list[SubmittedForm] = field(default_factory=list)
    claim_seconds: list[float] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class SimulatedLabelerBehavior:
    """How somebody works."""

    duplicate_rate: float = 0.0
    abandon_rate: float = 0.0
    draft_rate: float = 0.3
    mean_pause_s: float = 0.0
    """Seconds between tasks, on average."""
    max_submissions: int | None = None
    seed: int = 0


class SimulatedSiteLabeler:
    """One simulated person in front of the site. What they think of a text follows from the seed, whenever they see it.

    Args:
        me: a connection that is signed in.
        mind: the cohort with this one person in it.
    """

    def __init__(self, client: LabelerClient, simulator: SimulatedLabelers, behavior: SimulatedLabelerBehavior) -> None:
        self.client, self.simulator, self.behavior = client, simulator, behavior
        self.log = SimulatedLabelerLog()
        self.rng = Random(f"{behavior.seed} {simulator.labelers[0].name} manners")

    def run(self) -> SimulatedLabelerLog:
        """Until nothing is left to do, or enough was done. Returns the diary.

        Raises:
            RunFailed: the site refused something that it should not have, or was away for too long.
        """
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
            self.log.counts["walked away"] += 1
            reclaimed = self._claim()  # whoever comes back within the lease finds what they left
            if reclaimed is None or reclaimed["assignment"] != assignment_id:
                raise RunError(
                    f"{assignment_id}: was in hand, but a second claim gave {reclaimed and reclaimed['assignment']}"
                )
        if self.rng.random() < self.behavior.draft_rate:
            self._save_draft(task, form)
        idempotency_key = f"{assignment_id}-{self.rng.getrandbits(64):016x}"
        receipt = self.client.submit(assignment_id, form, idempotency_key)
        if self.rng.random() < self.behavior.duplicate_rate:
            duplicate_receipt = self.client.submit(assignment_id, form, idempotency_key)
            self.log.counts["clicked twice"] += 1
            if duplicate_receipt["submission"] != receipt["submission"]:
                raise RunError(f"{assignment_id}: handing in twice with one key made two submissions")
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
        """Save half of it, as the page does; one that was saved before the server died is followed, not refused."""
        revision = int((task["draft"] or {"rev": 0})["rev"])
        try:
            self.client.save_draft(str(task["assignment"]), revision, {**form, "note": "half"})
        except RunError:
            self.log.counts["drafts not saved"] += 1

    def build_form(self, task: Mapping[str, Any]) -> dict[str, Any] | None:
        """What this person hands in; None for a prompt that is not of their world."""
        build: Callable[[Mapping[str, Any]], dict[str, Any]] = getattr(self, f"_{task['kind']}")
        try:
            return {"kind": task["kind"], "active_ms": self.rng.randrange(5_000, 300_000)} | build(task)
        except InputError:
            return None

    def _rank(self, task: Mapping[str, Any]) -> dict[str, Any]:
        completions = task["completions"]
        (ranking,) = self.simulator.rank(
            [[Completion(prompt=task["prompt"], completion=each["text"], model=each["id"]) for each in completions]]
        )
        return ranking_to_form(ranking)

    def _demonstrate(self, task: Mapping[str, Any]) -> dict[str, Any]:
        text = self.simulator.demonstrate([Prompt(prompt=task["prompt"])])[0].completion
        return {"text": text, "meant_empty": not text.strip()}

    def _review(self, task: Mapping[str, Any]) -> dict[str, Any]:
        use_case = self.simulator.world.task(task["prompt"]).content.use_case
        return {
            "use_case": use_case,
            "personal_data": False,
            "sensitive": False,
            "labels": {"closed_domain": use_case == "closed_qa"},
        }

    def _write(self, task: Mapping[str, Any]) -> dict[str, Any]:
        use_case = (task["brief"] or {}).get("use_case")
        prompts = [each for each in self.simulator.world.prompts("sft", 200) if use_case in (None, each.use_case)]
        prompt = self.rng.choice(prompts)
        few_shot = (task["brief"] or {}).get("form") == "few_shot"
        examples = [[prompt.text, self.simulator.world.demonstration(prompt.text)]] if few_shot else []
        return {
            "form": (task["brief"] or {}).get("form", "plain"),
            "text": prompt.text,
            "use_case": prompt.use_case,
            "examples": examples,
        }


def ranking_to_form(ranking: Ranking) -> dict[str, Any]:
    """A ranking as the form of the page; `models` are the completions' ids. Labels that cannot be not applicable are answered."""
    assert ranking.models is not None
    assert ranking.ratings is not None
    assert ranking.labels is not None
    ids = ranking.models
    tiers = [
        [completion_id for completion_id, rank in zip(ids, ranking.ranks, strict=True) if rank == tier]
        for tier in sorted(set(ranking.ranks))
    ]
    ratings = [
        {
            "completion": completion_id,
            "rating": rating,
            "labels": {
                name: answer for name, answer in labels.items() if answer is not None or name in CONDITIONAL_LABELS
            },
        }
        for completion_id, rating, labels in zip(ids, ranking.ratings, ranking.labels, strict=True)
    ]
    return {"ratings": ratings, "tiers": tiers}


# ---------------------------------------------------------------- many of them


def make_simulated_labelers(
    world: World, cohort: Cohort, count: int, seed: int = 0, noise: float = LABELER_NOISE
) -> list[SimulatedLabelers]:
    """People of a cohort, each alone."""
    simulators = []
    for person in SimulatedLabelers(world, cohort, labeler_count=count, seed=seed, noise=noise).labelers:
        simulator = SimulatedLabelers(world, cohort, labeler_count=1, seed=seed, noise=noise)
        simulator.labelers = [person]
        simulators.append(simulator)
    return simulators


def register_labelers(
    base_url: str, owner_client: OwnerClient, simulators: Sequence[SimulatedLabelers], seed: int, patience: float
) -> list[LabelerClient]:
    """Everybody comes in by one invitation; those who would be screened are admitted."""
    token = owner_client.create_invite(
        role="labeler", cohort=simulators[0].cohort, max_uses=len(simulators), note="simulated labelers"
    )
    existing_ids = {person["id"] for person in owner_client.list_people()}
    clients = []
    for simulator in simulators:
        client, name = LabelerClient(base_url, patience=patience), f"{simulator.labelers[0].name} of seed {seed}"
        client.redeem_invite(token, name, _PASSWORD_TEMPLATE.format(name=name, seed=seed))
        clients.append(client)
    for person in owner_client.list_people():
        if person["id"] not in existing_ids and person["status"] == "screening":
            owner_client.decide(person["id"], "admit", "simulated labelers know what is right")
    return clients


def run_simulated_labelers(labelers: Sequence[SimulatedSiteLabeler]) -> list[SimulatedLabelerLog]:
    """All of them at the same time, until each is done. Raises what the first of them raised."""
    with ThreadPoolExecutor(len(labelers)) as executor:
        return [each.result() for each in [executor.submit(worker.run) for worker in labelers]]


def compare_logs_with_site(owner_client: OwnerClient, logs: Sequence[SimulatedLabelerLog]) -> dict[str, int]:
    """Compare what labelers wrote down with what the site has: submissions lost, changed, doubled; tasks given out too often."""
    stored_submissions = {each["id"]: each for each in owner_client.iter_submissions()}
    submitted_forms = [each for log in logs for each in log.submitted_forms]
    lost = sum(each.submission not in stored_submissions for each in submitted_forms)
    changed = sum(
        not forms_match(each.form, stored_submissions[each.submission]["form"])
        for each in submitted_forms
        if each.submission in stored_submissions
    )
    current_submissions = [each for each in stored_submissions.values() if each["replaced_at"] is None]
    duplicates = sum(count - 1 for count in Counter(each["assignment"] for each in current_submissions).values())
    counted_by_task = Counter(
        each["task"] for each in current_submissions if not each["surplus"] and each["round"] == 0
    )
    tasks = {task["id"]: task for batch in owner_client.list_batches() for task in owner_client.iter_tasks(batch["id"])}
    over_assigned = sum(max(0, counted_by_task[key] - task["overlap"]) for key, task in tasks.items())
    over_assigned += sum(task["n_open"] + task["n_done"] > task["overlap"] for task in tasks.values())
    return {
        "handed in": len(submitted_forms),
        "lost": lost,
        "changed": changed,
        "duplicate": duplicates,
        "over-assigned": over_assigned,
    }


def forms_match(sent: Mapping[str, Any], stored: Mapping[str, Any]) -> bool:
    """Whether everything that was sent is stored as it was; tiers that are empty and the order within one say nothing."""
    for name, value in sent.items():
        stored_value = stored.get(name)
        if name == "tiers":
            if [set(tier) for tier in value if tier] != [set(tier) for tier in stored_value or () if tier]:
                return False
        elif name == "ratings":
            ratings_by_completion = {each["completion"]: each for each in stored_value or ()}
            if any(
                ratings_by_completion[each["completion"]][part] != each[part]
                for each in value
                for part in ("rating", "labels")
            ):
                return False
        elif name in ("kind", "text", "use_case") and name in stored and stored_value != value:
            return False
    return True


def quantiles(values: Sequence[float], shares: Sequence[float] = (0.5, 0.95, 0.99)) -> Iterator[float]:
    """The smallest values that these shares of all do not exceed; nothing of nothing."""
    ordered = sorted(values)
    yield from (
        ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))] for share in shares if ordered
    )


def main(config: SimulateConfig) -> None:
    """Let a crowd work until nothing is left, and say what the site made of it. Raises BadInput, RunFailed."""
    key = config.key or os.environ.get(_API_KEY_VARIABLE)
    if not key:
        raise InputError(
            f"--key is missing: make one with the scopes read, write and admin on the site's data page, or set {_API_KEY_VARIABLE}"
        )
    world = World(config.seed)
    simulators = make_simulated_labelers(world, config.cohort, config.labelers, config.seed, config.noise)
    with OwnerClient(config.site, key, patience=config.patience) as owner_client:
        start = time.monotonic()
        clients = register_labelers(config.site, owner_client, simulators, config.seed, config.patience)
        behavior = SimulatedLabelerBehavior(
            config.double_clicks, config.walk_aways, max_submissions=config.tasks, seed=config.seed
        )
        labelers = [
            SimulatedSiteLabeler(client, simulator, behavior)
            for client, simulator in zip(clients, simulators, strict=True)
        ]
        try:
            logs = run_simulated_labelers(labelers)
        finally:
            for client in clients:
                client.close()
        counts = compare_logs_with_site(owner_client, logs)
    if config.out is not None:
        write_records(config.out, [form for log in logs for form in log.submitted_forms])
    claim_seconds = [claim for log in logs for claim in log.claim_seconds]
    counts["skipped"] = sum(log.counts["skipped"] for log in logs)
    print(
        f"{config.labelers} labelers, {time.monotonic() - start:.1f} s: "
        + ", ".join(f"{count} {what}" for what, count in counts.items())
    )
    if counts["skipped"] and not counts["handed in"]:
        print("they know the prompts of the small world of --seed only, and skipped all others")
    print(
        "claims, milliseconds at p50, p95, p99: "
        + ", ".join(f"{1000 * value:.0f}" for value in quantiles(claim_seconds))
    )
    if counts["lost"] or counts["changed"] or counts["duplicate"] or counts["over-assigned"]:
        raise RunError("the site lost, changed, doubled or gave out too much; see the counts above")
