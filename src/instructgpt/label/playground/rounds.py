"""The next round: users' new prompts become a batch of rankings, with completions of several policies.

A round is a row. Its samples are stored one by one, so that a killed server goes on where it was; the batch is created
in one transaction, from the prompts that are still there.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from instructgpt import records
from instructgpt.data.dedup import near_duplicate_reasons, prompt_text_without_system, user_cap_reasons
from instructgpt.data.use_cases import guess_use_case
from instructgpt.errors import InputError
from instructgpt.label.context import Site
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import (
    Assignment,
    PlaygroundAnswer,
    PlaygroundFeedback,
    PlaygroundRound,
    PlaygroundTurn,
    PlaygroundUser,
    PromptReview,
    PromptRow,
    RoundSample,
    Submission,
    Task,
    current_time_ms,
)
from instructgpt.label.errors import SiteError
from instructgpt.label.playground.endpoint import CONTENT_FILTERED, ModelEndpoint, ModelEndpointError
from instructgpt.label.playground.review import load_review_verdicts
from instructgpt.label.tasks import batches
from instructgpt.label.tasks.ingest import upsert_prompts
from instructgpt.label.vocabulary import MAX_COMPLETIONS

ModelRole = Literal["newest", "previous", "sft", "base", "other"]
_DEFAULT_SHARES: Mapping[ModelRole, float] = {"newest": 50.0, "previous": 25.0, "sft": 15.0, "base": 10.0, "other": 0.0}
_PREFIX_LENGTH = 200  # characters; longer common beginnings make prompts duplicates
_CONCURRENT_SAMPLES = 8
_MAX_SEED = 2**31 - 1
_RUNNING_ROUNDS: set[str] = set()
_RUNNING_LOCK = threading.Lock()


class RoundSettings(BaseModel):
    """How a round's batch is made. `shares`: model -> share of all completions, in any unit."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    shares: dict[str, float]
    k: int = Field(4, ge=2, le=MAX_COMPLETIONS)
    cap: int = Field(200, ge=1)  # prompts of one user (paper, A.2)
    max_prompts: int = Field(1_000, ge=1, le=5_000)
    temperature: float = Field(1.0, ge=0, le=2)
    max_tokens: int = Field(512, ge=1, le=4_096)
    include_answers: bool = True
    seed: int = 0


@dataclass
class RoundCandidates:
    """The prompts of the next round, and what is left out of it."""

    turns: list[PlaygroundTurn] = field(default_factory=list)
    users: Counter[str] = field(default_factory=Counter)  # pseudonym -> prompts
    use_cases: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)  # duplicate, cap, review, rejected, limit


def collect_candidates(db: Session, cap: int = 200, max_prompts: int = 1_000) -> RoundCandidates:
    """Return the new prompts since the last round, oldest first, without duplicates and beyond no limit."""
    statement = (
        select(PlaygroundTurn, PlaygroundUser.pseudonym)
        .join(PlaygroundUser, PlaygroundUser.id == PlaygroundTurn.user_id)
        .outerjoin(PromptRow, PromptRow.id == PlaygroundTurn.prompt_id)
        .where(PlaygroundTurn.state != "erased", PromptRow.withdrawn_at.is_(None))
        .order_by(PlaygroundTurn.round_id.is_(None), PlaygroundTurn.id)  # those of earlier rounds first
    )
    rows = db.execute(statement).all()
    verdicts = load_review_verdicts(db, [turn.prompt_id for turn, _ in rows if turn.prompt_id])
    result = RoundCandidates()
    usable: list[tuple[PlaygroundTurn, str]] = []
    for turn, pseudonym in rows:
        if turn.round_id is None and turn.state == "review" and verdicts.get(turn.prompt_id or "") is not True:
            result.left_out["rejected" if turn.prompt_id in verdicts else "review"] += 1
        else:
            usable.append((turn, pseudonym))
    texts = [prompt_text_without_system(_prompt_of(turn)) for turn, _ in usable]
    duplicates = near_duplicate_reasons(texts, _PREFIX_LENGTH)
    distinct = []
    for (turn, pseudonym), reason in zip(usable, duplicates, strict=True):
        if turn.round_id is None:
            if reason is None:
                distinct.append((turn, pseudonym))
            else:
                result.left_out["duplicate"] += 1
    caps = user_cap_reasons([pseudonym for _, pseudonym in distinct], cap)
    within_cap = [row for row, reason in zip(distinct, caps, strict=True) if reason is None]
    result.left_out["cap"] += len(distinct) - len(within_cap)
    result.left_out["limit"] += max(0, len(within_cap) - max_prompts)
    use_cases = _reviewed_use_cases(db)
    for turn, pseudonym in within_cap[:max_prompts]:
        result.turns.append(turn)
        result.users[pseudonym] += 1
        result.use_cases[_stated_use_case(turn, use_cases) or _guess_use_case(turn)] += 1
    return result


def _prompt_of(turn: PlaygroundTurn, **columns: Any) -> records.Prompt:
    return records.Prompt.model_validate({"messages": turn.messages, **columns})


def _reviewed_use_cases(db: Session) -> dict[str, str]:
    """Return prompt id -> use case of users' prompts, where the prompt or a labeler's review names one."""
    users_prompts = select(PlaygroundTurn.prompt_id).where(PlaygroundTurn.prompt_id.is_not(None))
    of_prompts = select(PromptRow.id, PromptRow.use_case).where(
        PromptRow.use_case.is_not(None), PromptRow.id.in_(users_prompts)
    )
    of_reviews = (
        select(Task.prompt_id, PromptReview.use_case)
        .join(Assignment, Assignment.task_id == Task.id)
        .join(Submission, Submission.assignment_id == Assignment.id)
        .join(PromptReview, PromptReview.submission_id == Submission.id)
        .where(PromptReview.use_case.is_not(None), Submission.replaced_at.is_(None))
        .where(Submission.invalid_reason.is_(None), Task.prompt_id.in_(users_prompts))
        .order_by(Submission.id)
    )
    rows = [*db.execute(of_reviews), *db.execute(of_prompts)]
    return {str(prompt_id): str(use_case) for prompt_id, use_case in rows}


def _stated_use_case(turn: PlaygroundTurn, reviewed: Mapping[str, str]) -> str | None:
    """Return the use case that a person named: in the prompt, in its review, or for the API key."""
    return reviewed.get(turn.prompt_id or "") or turn.use_case


def _guess_use_case(turn: PlaygroundTurn) -> str:
    spoken_count = sum(message["role"] != "system" for message in turn.messages)
    return guess_use_case(turn.messages[-1]["content"], spoken_count)


def guess_model_roles(models: Sequence[str]) -> dict[str, ModelRole]:
    """Guess each model's role from its name: `base`, `sft`, else policies, the newest by the round in its name.

    A name without a round, such as `policy`, is newer than `policy@round-2`.
    """
    roles: dict[str, ModelRole] = {}
    policies = []
    for name in models:
        if re.search(r"(^|[^a-z])base([^a-z]|$)", name.lower()):
            roles[name] = "base"
        elif re.search(r"(^|[^a-z])sft([^a-z]|$)", name.lower()):
            roles[name] = "sft"
        else:
            policies.append(name)

    def newness(name: str) -> float:
        match = re.search(r"round[-_ ]?(\d+)", name.lower())
        return float(match[1]) if match else float("inf")

    ordered = sorted(policies, key=newness, reverse=True)
    policy_roles: tuple[ModelRole, ...] = ("newest", "previous")
    roles |= {name: policy_roles[place] if place < 2 else "other" for place, name in enumerate(ordered)}
    return {name: roles[name] for name in models}


def default_shares(models: Sequence[str]) -> dict[str, float]:
    """Return the shares in percent that the page proposes."""
    roles = guess_model_roles(models)
    shares = {name: _DEFAULT_SHARES[role] for name, role in roles.items()}
    total = sum(shares.values()) or 1.0
    return {name: round(100 * share / total, 1) for name, share in shares.items()}


def allocate_models(shares: Mapping[str, float], prompts: int, k: int, seed: int) -> list[list[str]]:
    """Return the models of each prompt's K completions: exact shares over all of them (largest remainders)."""
    total = sum(shares.values())
    if total <= 0 or min(shares.values()) < 0:
        raise SiteError(422, "bad_shares")
    slots = prompts * k
    exact = {name: slots * share / total for name, share in shares.items()}
    counts = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (counts[name] - exact[name], name))
    for name in by_remainder[: slots - sum(counts.values())]:
        counts[name] += 1
    # Dealt out like cards: each model is spread evenly over the prompts.
    rng = Random(seed)
    order = list(range(prompts))
    rng.shuffle(order)
    models: list[list[str]] = [[] for _ in range(prompts)]
    cards = [name for name, count in counts.items() for _ in range(count)]
    for place, name in enumerate(cards):
        models[order[place % prompts]].append(name)
    return models


def start_round(db: Session, settings: RoundSettings, caller_id: str | None) -> PlaygroundRound:
    """Create a round with everything to sample; raise SiteError when one is running or there is nothing new."""
    if db.scalar(select(PlaygroundRound.id).where(PlaygroundRound.state == "sampling")):
        raise SiteError(409, "round_running")
    candidates = collect_candidates(db, settings.cap, settings.max_prompts)
    if not candidates.turns:
        raise SiteError(409, "no_new_prompts")
    number = 1 + (db.scalar(select(func.max(PlaygroundRound.number))) or 0)
    row = PlaygroundRound(
        number=number,
        settings=settings.model_dump(mode="json"),
        counts=dict(candidates.left_out),
        created_by=caller_id,
    )
    db.add(row)
    db.flush()
    rng = Random(settings.seed + number)
    allocation = allocate_models(settings.shares, len(candidates.turns), settings.k, settings.seed + number)
    for turn, models in zip(candidates.turns, allocation, strict=True):
        turn.round_id = row.id
        for model in models:
            db.add(RoundSample(round_id=row.id, turn_id=turn.id, model=model, seed=rng.randrange(_MAX_SEED)))
    audit_log.append_entry(db, caller_id or "cli", "playground.round", row.id, prompts=len(candidates.turns))
    db.flush()
    return row


def count_samples(db: Session, round_id: str) -> tuple[int, int]:
    """Return how many completions of a round are sampled, and how many there are."""
    statement = select(func.count(RoundSample.text), func.count()).where(RoundSample.round_id == round_id)
    sampled, total = db.execute(statement).one()
    return int(sampled), int(total)


def resume_rounds(site: Site, endpoint: ModelEndpoint) -> None:
    """Finish the rounds that are being sampled."""
    with site.database.read() as db:
        ids = db.scalars(select(PlaygroundRound.id).where(PlaygroundRound.state == "sampling")).all()
    for round_id in ids:
        run_round(site, endpoint, round_id)


def run_round(site: Site, endpoint: ModelEndpoint, round_id: str) -> None:
    """Sample what is missing, then create the batch, unless another thread of this process does.

    A failure of the endpoint gives the prompts back to the next round.
    """
    with _RUNNING_LOCK:
        if round_id in _RUNNING_ROUNDS:
            return
        _RUNNING_ROUNDS.add(round_id)
    try:
        _run_round(site, endpoint, round_id)
    finally:
        with _RUNNING_LOCK:
            _RUNNING_ROUNDS.discard(round_id)


def _run_round(site: Site, endpoint: ModelEndpoint, round_id: str) -> None:
    with site.database.read() as db:
        settings = RoundSettings.model_validate(db.get_one(PlaygroundRound, round_id).settings)
        statement = select(RoundSample.id).where(RoundSample.round_id == round_id, RoundSample.text.is_(None))
        sample_ids = list(db.scalars(statement))
    try:
        asyncio.run(_sample_all(site, endpoint, settings, sample_ids))
        with site.database.write() as db:
            row = db.get_one(PlaygroundRound, round_id, with_for_update=True)
            if row.state == "sampling":
                _create_round_batch(db, row, settings)
    except (ModelEndpointError, InputError) as error:
        reason = error.summary if isinstance(error, ModelEndpointError) else str(error)
        with site.database.write() as db:
            _fail_round(db, db.get_one(PlaygroundRound, round_id, with_for_update=True), reason)


async def _sample_all(site: Site, endpoint: ModelEndpoint, settings: RoundSettings, sample_ids: Sequence[str]) -> None:
    """Sample and store completions, a few at once; the first failure cancels the others."""
    limit = asyncio.Semaphore(_CONCURRENT_SAMPLES)
    async with endpoint.client() as client:

        async def sample(sample_id: str) -> None:
            async with limit:
                job = await asyncio.to_thread(_load_sample, site, sample_id)
                if job is None:
                    return
                model, seed, messages = job
                sampling = {"temperature": settings.temperature, "max_tokens": settings.max_tokens, "seed": seed}
                completion = await endpoint.complete_chat(client, model, messages, sampling)
                await asyncio.to_thread(_store_sample, site, sample_id, completion.text, completion.finish or "stop")

        tasks = [asyncio.create_task(sample(sample_id)) for sample_id in sample_ids]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _load_sample(site: Site, sample_id: str) -> tuple[str, int, list[dict[str, str]]] | None:
    """Return model, seed and messages of a sample; None for one whose prompt was erased meanwhile."""
    with site.database.read() as db:
        row = db.get(RoundSample, sample_id)
        turn = db.get(PlaygroundTurn, row.turn_id) if row is not None else None
        if row is None or turn is None or turn.state == "erased":
            return None
        return row.model, row.seed, list(turn.messages)


def _store_sample(site: Site, sample_id: str, text: str, finish: str) -> None:
    """Store a completion; the row of an erased prompt is gone."""
    with site.database.write() as db:
        db.execute(update(RoundSample).where(RoundSample.id == sample_id).values(text=text, finish=finish))


def _create_round_batch(db: Session, row: PlaygroundRound, settings: RoundSettings) -> None:
    """Create the round's batch of rankings and delete its samples."""
    statement = (
        select(PlaygroundTurn, PlaygroundUser.pseudonym)
        .join(PlaygroundUser, PlaygroundUser.id == PlaygroundTurn.user_id)
        .where(PlaygroundTurn.round_id == row.id, PlaygroundTurn.state != "erased")
        .order_by(PlaygroundTurn.id)
        .with_for_update(of=PlaygroundTurn)
    )
    turns = db.execute(statement).all()
    use_cases = _reviewed_use_cases(db)
    prompts, completions = [], []
    for turn, pseudonym in turns:
        use_case = _stated_use_case(turn, use_cases)
        prompt = _prompt_of(turn, user=pseudonym, source=turn.client, use_case=use_case)
        prompts.append(prompt)
        completions += _round_completions(db, turn, prompt, settings)
    policy = batches.OverlapPolicy(seed=settings.seed)
    batch = batches.create_batch_with_tasks(db, f"round {row.number}", "rank", "training", prompts, completions, policy)
    for (turn, _), prompt_row in zip(turns, upsert_prompts(db, prompts), strict=True):
        turn.prompt_id = prompt_row.id
    db.execute(delete(RoundSample).where(RoundSample.round_id == row.id))
    row.state, row.batch_id, row.finished_at = "done", batch.id, current_time_ms()
    audit_log.append_entry(db, row.created_by or "cli", "batch.create", batch.id, kind="rank", purpose="training")


def _round_completions(
    db: Session, turn: PlaygroundTurn, prompt: records.Prompt, settings: RoundSettings
) -> list[records.Completion]:
    """Return the sampled completions of a prompt and, if wanted, the answers that its user ranked."""
    columns = prompt.prompt_columns()
    sampling = {"temperature": settings.temperature, "max_tokens": settings.max_tokens}
    samples = db.scalars(select(RoundSample).where(RoundSample.turn_id == turn.id).order_by(RoundSample.id))
    completions = [
        _completion(columns, sample.text, sample.model, sample.finish, sampling | {"seed": sample.seed})
        for sample in samples
        if sample.text and sample.finish != CONTENT_FILTERED
    ]
    answers = _ranked_answers(db, turn) if settings.include_answers else ()
    return completions + [
        _completion(columns, answer.text, answer.model, answer.finish, answer.sampling)
        for answer in answers
        if answer.finish != CONTENT_FILTERED
    ]


def _completion(
    columns: Mapping[str, Any], text: str, model: str, finish: str | None, sampling: Mapping[str, Any]
) -> records.Completion:
    finish = "stop" if finish == "stop" else "length"
    return records.Completion.model_validate(
        {**columns, "completion": text, "model": model, "finish": finish, "sampling": dict(sampling)}
    )


def _ranked_answers(db: Session, turn: PlaygroundTurn) -> Sequence[PlaygroundAnswer]:
    """Return the answers that the user ranked; labelers rank them, too, which measures their agreement."""
    ranking = select(PlaygroundFeedback.id).where(
        PlaygroundFeedback.turn_id == turn.id,
        PlaygroundFeedback.kind == "ranking",
        PlaygroundFeedback.replaced_at.is_(None),
    )
    if db.scalar(ranking) is None:
        return ()
    answers = select(PlaygroundAnswer).where(PlaygroundAnswer.turn_id == turn.id)
    return db.scalars(answers.order_by(PlaygroundAnswer.position)).all()


def _fail_round(db: Session, row: PlaygroundRound, reason: str) -> None:
    """Give the prompts back to the next round. `reason` holds no prompt."""
    db.execute(delete(RoundSample).where(RoundSample.round_id == row.id))
    db.execute(update(PlaygroundTurn).where(PlaygroundTurn.round_id == row.id).values(round_id=None))
    row.state, row.error, row.finished_at = "failed", reason, current_time_ms()
