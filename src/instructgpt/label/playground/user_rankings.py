"""Users' comparisons and edits as records, and how far users agree with labelers.

A comparison is a ranking with cohort `user`; an edit is a demonstration, and a ranking of the edit above the original.
Thumbs and reports are no records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.label.analysis.rankings import load_stored_rankings
from instructgpt.label.db.models import (
    CompletionRow,
    PlaygroundAnswer,
    PlaygroundFeedback,
    PlaygroundTurn,
    PlaygroundUser,
    PromptRow,
    Task,
    TaskCompletion,
)
from instructgpt.label.playground.review import load_review_verdicts
from instructgpt.label.tasks.ingest import prompt_hash, text_hash
from instructgpt.records import Message, Prompt, format_conversation

if TYPE_CHECKING:
    from instructgpt.statistics.intervals import Estimate
    from instructgpt.statistics.pair_judgments import LabelerRanking

_USER_MODEL = "user"
"""`models` of an edit."""
_MAX_SELECTED_PROMPTS = 10_000  # in one statement; with more, all rankings are read
RecordRow = dict[str, Any]


@dataclass(frozen=True, slots=True)
class UserAgreement:
    """How often users and labelers decide a pair alike, beside labelers with each other, on the same prompts."""

    decided: Estimate
    labelers: Estimate
    pairs: int
    prompts: int
    users: int


@dataclass(frozen=True, slots=True)
class _Comparison:
    feedback: PlaygroundFeedback
    turn: PlaygroundTurn
    pseudonym: str
    answers: list[PlaygroundAnswer]


def iter_user_records(
    db: Session, name: str, left_out: Counter[str], since: int | None = None, until: int | None = None
) -> Iterator[RecordRow]:
    """Yield the rows of one export file, `rankings`, `demonstrations`, `comparisons` or `pairs`; others have none.

    Args:
        left_out: counts feedback that is left out, by reason.
        since, until: of the feedback, milliseconds since 1970; `until` is exclusive.
    """
    if name not in ("rankings", "demonstrations", "comparisons", "pairs"):
        return
    for comparison in _iter_comparisons(db, left_out, since, until):
        if name == "demonstrations":
            if comparison.feedback.kind == "edit":
                yield _provenance(comparison) | {"completion": comparison.feedback.value["text"]}
            continue
        ranking = _ranking_record(comparison)
        if ranking is None:
            left_out["one_completion"] += name == "rankings"
        elif name == "rankings":
            yield ranking
        else:
            yield from _pair_rows(ranking, name)


def _iter_comparisons(
    db: Session, left_out: Counter[str], since: int | None, until: int | None
) -> Iterator[_Comparison]:
    """Yield the current rankings and edits on prompts that may be used, in their order."""
    statement = (
        select(PlaygroundFeedback, PlaygroundTurn, PlaygroundUser.pseudonym)
        .join(PlaygroundTurn, PlaygroundTurn.id == PlaygroundFeedback.turn_id)
        .join(PlaygroundUser, PlaygroundUser.id == PlaygroundTurn.user_id)
        .where(PlaygroundFeedback.kind.in_(("ranking", "edit")), PlaygroundFeedback.replaced_at.is_(None))
        .where(PlaygroundTurn.state != "erased")
        .order_by(PlaygroundFeedback.id)
    )
    rows = db.execute(statement).all()
    verdicts = load_review_verdicts(db, [turn.prompt_id for _, turn, _ in rows if turn.prompt_id])
    withdrawn_ids = set(db.scalars(select(PromptRow.id).where(PromptRow.withdrawn_at.is_not(None))))
    for feedback, turn, pseudonym in rows:
        if not (since or 0) <= feedback.created_at < (until or feedback.created_at + 1):
            left_out["other_time"] += 1
        elif turn.prompt_id in withdrawn_ids:
            left_out["withdrawn_prompt"] += 1
        elif turn.state == "review" and verdicts.get(turn.prompt_id or "") is not True:
            left_out["in_review" if turn.prompt_id not in verdicts else "rejected"] += 1
        elif feedback.value.get("personal_data"):
            left_out["personal_data"] += 1
        else:
            answers = select(PlaygroundAnswer).where(PlaygroundAnswer.turn_id == turn.id)
            ordered = list(db.scalars(answers.order_by(PlaygroundAnswer.position)))
            yield _Comparison(feedback, turn, pseudonym, ordered)


def _provenance(comparison: _Comparison) -> RecordRow:
    feedback, turn = comparison.feedback, comparison.turn
    return {
        "id": feedback.id,
        "labeler": comparison.pseudonym,
        "cohort": "user",
        "source": "playground",
        "user": comparison.pseudonym,
        "prompt_id": turn.prompt_id or turn.id,
        "messages": turn.messages,
        "created_at": feedback.created_at,
    }


def _ranking_record(comparison: _Comparison) -> RecordRow | None:
    """Return a ranking of distinct answers; None when fewer than two are left."""
    feedback, answers = comparison.feedback, comparison.answers
    if feedback.kind == "edit":
        [original] = [answer for answer in answers if answer.id == feedback.answer_id]
        return _provenance(comparison) | {
            "completions": [feedback.value["text"], original.text],
            "ranks": [1, 2],
            "models": [_USER_MODEL, original.model],
            "finish": ["stop", _finish(original)],
            "none_acceptable": False,
            "shown": [0, 1],
        }
    ranks = feedback.value["ranks"]
    if len({answer.text.strip() for answer in answers}) < 2:
        return None
    is_all_bad = bool(feedback.value["all_bad"])
    return _provenance(comparison) | {
        "completions": [answer.text for answer in answers],
        "ranks": [ranks[answer.id] for answer in answers],
        "models": [answer.model for answer in answers],
        "finish": [_finish(answer) for answer in answers],
        "none_acceptable": is_all_bad,
        "shown": [answer.position for answer in answers],
    }


def _finish(answer: PlaygroundAnswer) -> str:
    return "stop" if answer.finish == "stop" else "length"  # stopped by the user: cut off, too


def _pair_rows(ranking: RecordRow, name: str) -> Iterator[RecordRow]:
    prompt = format_conversation([Message.model_validate(turn) for turn in ranking["messages"]])
    texts, ranks, models = ranking["completions"], ranking["ranks"], ranking["models"]
    for i, j in combinations(range(len(texts)), 2):
        if name == "comparisons":
            yield {
                **{column: ranking[column] for column in ("prompt_id", "labeler", "cohort")},
                "ranking": ranking["id"],
                "prompt": prompt,
                "i": i,
                "j": j,
                "completion_i": texts[i],
                "completion_j": texts[j],
                "model_i": models[i],
                "model_j": models[j],
                "better": "tie" if ranks[i] == ranks[j] else "i" if ranks[i] < ranks[j] else "j",
                "weight": 1 / comb(len(texts), 2),
            }
        elif ranks[i] != ranks[j] and texts[i] != texts[j]:
            better, worse = (i, j) if ranks[i] < ranks[j] else (j, i)
            yield {
                "prompt": prompt,
                "chosen": texts[better],
                "rejected": texts[worse],
                "ranking": ranking["id"],
                "labeler": ranking["labeler"],
            }


def measure_user_agreement(db: Session) -> UserAgreement | None:
    """Compare users' rankings with labelers' rankings of the same answers to the same prompts; None without any.

    The interval counts one user's rankings, and one prompt's, as one cluster.
    """
    import numpy as np

    from instructgpt.statistics.agreement import compare_labelers, summarize_agreement
    from instructgpt.statistics.pair_judgments import LabelerRanking

    users = [
        LabelerRanking(
            prompt_hash(Prompt.model_validate({"messages": row["messages"]})),
            row["labeler"],
            [text_hash(text) for text in row["completions"]],
            row["ranks"],
        )
        for row in iter_user_records(db, "rankings", Counter())
        if _USER_MODEL not in row["models"]
    ]
    if not users:
        return None
    labelers = _load_labeler_rankings(db, {str(ranking.prompt) for ranking in users})
    cells = compare_labelers([*users, *labelers])
    pseudonyms = {ranking.labeler for ranking in users}
    is_user = np.array([name in pseudonyms for name in cells.labelers], dtype=bool)
    if not len(cells.first):
        return None
    mixed = cells.where(is_user[cells.first] != is_user[cells.second])
    if not len(mixed.first):
        return None
    agreement = summarize_agreement(mixed)
    among = summarize_agreement(cells.where(~is_user[cells.first] & ~is_user[cells.second]))
    indices = {*mixed.first.tolist(), *mixed.second.tolist()}
    return UserAgreement(
        decided=agreement.decided,
        labelers=among.decided,
        pairs=agreement.concordant + agreement.discordant,
        prompts=len(set(mixed.prompt.tolist())),
        users=sum(bool(is_user[index]) for index in indices),
    )


def _load_labeler_rankings(db: Session, prompts: Collection[str]) -> list[LabelerRanking]:
    """Load the labelers' rankings of prompts, which are given by their hashes, in the form of the users' rankings."""
    from instructgpt.statistics.pair_judgments import LabelerRanking

    rows = db.execute(select(PromptRow.id, PromptRow.text_hash))
    hashes = {prompt_id: text_hash for prompt_id, text_hash in rows if text_hash in prompts}
    is_of_prompts = Task.prompt_id.in_(hashes) if len(hashes) <= _MAX_SELECTED_PROMPTS else None
    rankings = [row for row in load_stored_rankings(db, only=is_of_prompts) if row.prompt in hashes and not row.round]
    completions = select(CompletionRow.id, CompletionRow.text_hash)
    if is_of_prompts is not None:
        in_tasks = select(TaskCompletion.completion_id).join(Task, Task.id == TaskCompletion.task_id)
        completions = completions.where(CompletionRow.id.in_(in_tasks.where(is_of_prompts)))
    texts = dict(db.execute(completions).all())
    return [
        LabelerRanking(hashes[row.prompt], row.labeler, [texts[name] for name in row.completions], row.ranks)
        for row in rankings
    ]


def count_feedback(db: Session) -> dict[str, int]:
    """Return the numbers of current feedback by kind; `all_bad` of the rankings."""
    statement = (
        select(PlaygroundFeedback.kind, PlaygroundFeedback.value)
        .join(PlaygroundTurn, PlaygroundTurn.id == PlaygroundFeedback.turn_id)
        .where(PlaygroundFeedback.replaced_at.is_(None), PlaygroundTurn.state != "erased")
    )
    counts: Counter[str] = Counter()
    for kind, value in db.execute(statement):
        counts[kind] += 1
        counts["all_bad"] += kind == "ranking" and bool(value["all_bad"])
    return {name: counts[name] for name in ("ranking", "all_bad", "edit", "thumb", "report")}
