"""What comes into a batch: prompts and completions as rows, duplicates merged, texts that name their model marked, all of it counted."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt import records
from instructgpt.errors import BadInput
from instructgpt.label.db.models import Completion, Person, Prompt, new_id
from instructgpt.label.tasks.leaks import names_itself

MOST_COMPLETIONS = 9
"""They are called A to I; K goes from 4 to 9 in the paper (3.5)."""
R = TypeVar("R", bound=records.Record)
AT_ONCE = 500
"""Values that one statement names at most; databases have a limit."""


class Intake(BaseModel):
    """What came into a batch and what was left out of it, in numbers."""

    prompts: int = 0
    completions: int = 0
    tasks: int = 0
    same_prompt: int = 0
    """Prompts with a text that an earlier one of the same batch has."""
    withdrawn_prompts: int = 0
    without_prompt: int = 0
    """Completions of prompts that are not in the batch."""
    merged: int = 0
    """Completions that look like an earlier one of their prompt: shown once, tied in exports."""
    beyond_k: int = 0
    """Completions above the largest K, left out at random."""
    too_few: int = 0
    """Prompts with fewer different completions than the smallest K."""
    without_baseline: int = 0
    mended: int = 0
    """Texts with characters that no database keeps (NUL, half surrogates), each of which became U+FFFD."""
    name_themselves: int = 0
    """Completions that say which model wrote them: kept, marked, shown apart."""
    unused_gold: int = 0
    """Answers that belong to no task, or do not cover its completions."""

    def in_words(self) -> str:
        """The numbers that are not 0, for one line."""
        return ", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in self.model_dump().items() if count)


@dataclass
class Shown:
    """A completion of a task, and every model that gave this text."""

    completion: Completion
    models: list[str]


@dataclass
class Candidate:
    """A task to be."""

    prompt: Prompt | None
    completions: tuple[Shown, ...] = ()
    brief: dict[str, Any] | None = None


@dataclass
class _Text:
    """Completions of one prompt that look alike; the first stands for all."""

    first: records.Completion
    models: list[str] = field(default_factory=list)


def text_hash(text: str) -> str:
    """SHA-256 of a text without the white space around it: two texts with the same hash look the same on the page."""
    return hashlib.sha256(text.strip().encode("utf-8", "surrogatepass")).hexdigest()


def prompt_hash(prompt: records.Asked) -> str:
    """SHA-256 of what is asked; a conversation differs from the same words in one piece."""
    if prompt.messages is None:
        return text_hash(prompt.text)
    return text_hash(json.dumps([message.model_dump() for message in prompt.messages], ensure_ascii=False, sort_keys=True))


def parts(values: Iterable[Any], size: int = AT_ONCE) -> Iterator[list[Any]]:
    """The values in lists of at most `size`."""
    listed = list(values)
    return (listed[start : start + size] for start in range(0, len(listed), size))


def gather(
    db: Session,
    kind: str,
    prompts: Iterable[records.Prompt],
    completions: Iterable[records.Completion],
    k: tuple[int, int] | None,
    baseline: str | None,
    report: Intake,
    rng: Random,
) -> list[Candidate]:
    """The tasks that can be made, in the order of the prompts. Raises BadInput as `prompt_rows` does, or when nothing was given."""
    if kind == "write":
        return []
    offered = [_kept(each, report) for each in completions] if kind == "rank" else []
    asked = [_kept(each, report) for each in prompts]
    if kind == "rank" and not asked:
        asked = [records.Prompt(prompt=text) for text in dict.fromkeys(each.prompt for each in offered)]
    report.prompts, report.completions = len(asked), len(offered)
    different: dict[str, records.Prompt] = {}
    for prompt in asked:
        different.setdefault(prompt_hash(prompt), prompt)
    report.same_prompt = len(asked) - len(different)
    rows = prompt_rows(db, list(different.values()))
    usable = [(prompt, row) for prompt, row in zip(different.values(), rows, strict=True) if row.withdrawn_at is None]
    report.withdrawn_prompts = len(different) - len(usable)
    if kind != "rank":
        return [Candidate(row) for _, row in usable]
    return _with_completions(db, usable, offered, k, baseline, report, rng)


def _kept(record: R, report: Intake) -> R:
    """A record with texts that can be stored: a model's output may hold any character."""
    texts = {name: text for name in ("prompt", "completion") if isinstance(text := getattr(record, name, None), str)}
    mended = {name: whole for name, text in texts.items() if (whole := mend(text)) != text}
    messages: tuple[records.Message, ...] = getattr(record, "messages", None) or ()
    if any(mend(each.content) != each.content for each in messages):
        mended["messages"] = tuple(each.model_copy(update={"content": mend(each.content)}) for each in messages)  # type: ignore[assignment]
    report.mended += bool(mended)
    return record.model_copy(update=mended) if mended else record


def mend(text: str) -> str:
    """A text with U+FFFD in place of what no database keeps."""
    return re.sub("[\x00\ud800-\udfff]", "\ufffd", text)


def prompt_rows(db: Session, prompts: Sequence[records.Prompt]) -> list[Prompt]:
    """The row of each prompt, new or the one that is there: the same text from the same user is one prompt.

    Raises:
        BadInput: an id that already belongs to another text.
    """
    hashes = [prompt_hash(prompt) for prompt in prompts]
    there: dict[tuple[str, str | None], Prompt] = {}
    for part in parts(hashes):
        there |= {(row.text_hash, row.user): row for row in db.scalars(select(Prompt).where(Prompt.text_hash.in_(part)))}
    by_id: dict[str, Prompt] = {}
    for part in parts(prompt.id for prompt in prompts if prompt.id is not None):
        by_id |= {row.external_id or "": row for row in db.scalars(select(Prompt).where(Prompt.external_id.in_(part)))}
    rows = []
    for prompt, hashed in zip(prompts, hashes, strict=True):
        named = by_id.get(prompt.id) if prompt.id is not None else None
        if named is not None and named.text_hash != hashed:
            raise BadInput(f"prompt id '{prompt.id}' already belongs to another text; give ids that are unique on the site, or none")
        row = named or there.get((hashed, prompt.user))
        if row is None:
            row = new_prompt(prompt, hashed)
            db.add(row)
            there[hashed, row.user] = row
            by_id |= {row.external_id: row} if row.external_id is not None else {}
        rows.append(row)
    db.flush()
    return rows


def new_prompt(prompt: records.Prompt, hashed: str) -> Prompt:
    """A prompt as a row. A column `sensitive` of the file is taken over."""
    return Prompt(
        id=new_id(), external_id=prompt.id, text=prompt.text, text_hash=hashed, source=prompt.source, user=prompt.user,
        messages=[message.model_dump() for message in prompt.messages] if prompt.messages is not None else None,
        use_case=prompt.use_case, split=prompt.split, sensitive=bool((prompt.model_extra or {}).get("sensitive", False)),
    )  # fmt: skip


def _with_completions(
    db: Session,
    prompts: list[tuple[records.Prompt, Prompt]],
    offered: list[records.Completion],
    k: tuple[int, int] | None,
    baseline: str | None,
    report: Intake,
    rng: Random,
) -> list[Candidate]:
    """Rank: each prompt with its different completions, as many as K allows."""
    fewest, most = k or (2, MOST_COMPLETIONS)
    by_prompt: dict[str, list[records.Completion]] = {}
    for each in offered:
        by_prompt.setdefault(each.prompt, []).append(each)
    report.without_prompt = len(offered) - sum(len(by_prompt.get(prompt.text, ())) for prompt, _ in prompts)
    taken: list[tuple[Prompt, list[_Text]]] = []
    for prompt, row in prompts:
        texts = _different(by_prompt.get(prompt.text, []))
        report.merged += len(by_prompt.get(prompt.text, [])) - len(texts)
        if baseline is not None and not any(baseline in text.models for text in texts):
            report.without_baseline += 1
        elif len(texts) < fewest:
            report.too_few += 1
        else:
            report.beyond_k += max(0, len(texts) - most)
            taken.append((row, _at_most(texts, most, baseline, rng)))
    return _completion_rows(db, taken, report)


def _different(completions: Iterable[records.Completion]) -> list[_Text]:
    """Completions of one prompt, those that look alike merged."""
    texts: dict[str, _Text] = {}
    for each in completions:
        texts.setdefault(text_hash(each.completion), _Text(each)).models.append(each.model)
    return list(texts.values())


def _at_most(texts: list[_Text], most: int, baseline: str | None, rng: Random) -> list[_Text]:
    """A random choice that keeps the baseline, in the order of the file."""
    if len(texts) <= most:
        return texts
    kept = [number for number, text in enumerate(texts) if baseline in text.models][:1]
    rest = [number for number in range(len(texts)) if number not in kept]
    return [texts[number] for number in sorted(kept + rng.sample(rest, most - len(kept)))]


def _completion_rows(db: Session, taken: list[tuple[Prompt, list[_Text]]], report: Intake) -> list[Candidate]:
    """Candidates with rows for their completions, new or those that are there."""
    there: dict[tuple[str, str, str], Completion] = {}
    for part in parts(row.id for row, _ in taken):
        rows = db.scalars(select(Completion).where(Completion.prompt_id.in_(part)))
        there |= {(row.prompt_id, row.model, row.text_hash): row for row in rows}
    people = {pseudonym: number for number, pseudonym in db.execute(select(Person.id, Person.pseudonym))}
    names = sorted({model for _, texts in taken for text in texts for model in text.models})
    candidates = []
    for prompt, texts in taken:
        shown = []
        for text in texts:
            key = (prompt.id, text.first.model, text_hash(text.first.completion))
            if key not in there:
                there[key] = _new_completion(prompt, text.first, key[2], people, names)
                db.add(there[key])
            report.name_themselves += there[key].names_itself
            shown.append(Shown(there[key], text.models))
        candidates.append(Candidate(prompt, tuple(shown)))
    db.flush()
    return candidates


def _new_completion(prompt: Prompt, record: records.Completion, hashed: str, people: Mapping[str, str], names: list[str]) -> Completion:
    """A completion as a row. A column `labeler` (a pseudonym) says whose demonstration it is."""
    author = people.get(str((record.model_extra or {}).get("labeler", "")))
    return Completion(
        id=new_id(), prompt_id=prompt.id, text=record.completion, text_hash=hashed, model=record.model, finish=record.finish,
        sampling=record.sampling, score=record.score, names_itself=names_itself(record.completion, names), author_id=author,
    )  # fmt: skip


def take_answer(candidate: Candidate, answers: dict[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The known answer of a task, taken out of `answers`; None when there is none, or it leaves completions of the task out.

    A ranking's answer comes by text and is kept by the completions' ids.
    """
    prompt = candidate.prompt
    key = next((key for key in (prompt.external_id, prompt.text) if key in answers), None) if prompt is not None else None
    if key is None:
        return None
    answer = answers[key]
    if candidate.completions:
        ranks = {text_hash(text): rank for text, rank in answer.items()}
        if not all(each.completion.text_hash in ranks for each in candidate.completions):
            return None
        answer = {each.completion.id: ranks[each.completion.text_hash] for each in candidate.completions}
    del answers[key]
    return dict(answer)
