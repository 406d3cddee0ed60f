"""Work that was done with other tools: the JSON exports of Label Studio and Argilla as our records.

Neither export says which field is the prompt and which are completions. Names that both communities use are known here; others are told
by options, or for Label Studio read from its labeling configuration. What cannot be read for certain is an error, never a guess.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from instructgpt.errors import BadInput
from instructgpt.records import Demonstration, Ranking, Record

PROMPT_FIELDS = ("prompt", "messages", "instruction", "question", "input", "query", "context")
ITEM_TEXTS = ("body", "text", "completion", "answer", "response", "output", "html", "title")
"""Where an item of a Label Studio list has its text, the first that is there."""
NOT_PLACED = "_"
"""Label Studio: the list from which items were not moved into a bucket."""
MOST = 7


class RatedCompletion(Record):
    """One completion that was rated without being ranked."""

    prompt: str
    completion: str
    rating: int
    model: str = "unknown"
    labeler: str | None = None
    note: str = ""


@dataclass
class Reading:
    """How files of others are to be read, and what of them was left out."""

    prompt_field: str | None = None
    questions: tuple[str, ...] = ()
    """Only these controls or questions are read; all of them when empty."""
    rating_max: int = MOST
    fields: dict[str, str] = field(default_factory=dict)
    """Label Studio: the name of a text on the page -> the field it shows."""
    buckets: list[str] = field(default_factory=list)
    """Label Studio: names of buckets, best first."""
    left_out: Counter[str] = field(default_factory=Counter)

    def wants(self, name: str) -> bool:
        """Whether a control or question is to be read."""
        return not self.questions or name in self.questions

    def rating(self, value: Any) -> tuple[int, str]:
        """A rating on the scale from 1 to 7, and what was said where that was another. Raises ValueError outside of the scale."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= self.rating_max:
            raise ValueError(f"rating {value!r} is not between 1 and {self.rating_max}; --rating-max names the other tool's highest")
        if self.rating_max == MOST:
            if value != int(value):
                raise ValueError(f"rating {value!r} is not a whole number")
            return int(value), ""
        return int(1 + (MOST - 1) * (value - 1) / (self.rating_max - 1) + 0.5), f"rated {value:g} of {self.rating_max}"


def read_labeling_config(file: Path, reading: Reading) -> None:
    """Take the names of texts and the order of buckets from Label Studio's labeling configuration. Raises BadInput."""
    try:
        root = ElementTree.fromstring(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ElementTree.ParseError) as error:
        raise BadInput(f"{file}: not a labeling configuration ({error}); save the project's Labeling Interface as XML") from error
    for tag in root.iter():
        value, name = tag.get("value", ""), tag.get("name")
        if name and value.startswith("$"):
            reading.fields[name] = value[1:]
        if tag.tag == "Bucket" and name:
            reading.buckets.append(name)


def is_label_studio(row: Mapping[str, Any]) -> bool:
    """Whether a row is a task of Label Studio's JSON export."""
    return isinstance(row.get("data"), dict) and isinstance(row.get("annotations"), list)


def is_argilla(row: Mapping[str, Any]) -> bool:
    """Whether a row is a record of Argilla's, nested or flat."""
    nested = isinstance(row.get("fields"), dict) and "responses" in row
    return nested or any(name.endswith(".responses") for name in row)


def prompt_of(fields: Mapping[str, Any], reading: Reading) -> tuple[str, str]:
    """(name of the field, prompt). Raises ValueError where there is none."""
    names = (reading.prompt_field,) if reading.prompt_field else PROMPT_FIELDS
    for name in names:
        value = fields.get(name)
        if isinstance(value, list):  # a chat: the turns as one text
            value = "\n\n".join(str(turn.get("content", "")) for turn in value if isinstance(turn, dict))
        if isinstance(value, str) and value.strip():
            return name, value
    raise ValueError(f"no prompt (fields found: {', '.join(fields) or 'none'}); name its field with --prompt-field")


def ranked(prompt: str, texts: Sequence[str], ranks: Sequence[int], labeler: str | None, models: Sequence[str], **more: Any) -> Ranking:
    """A ranking by somebody elsewhere. Raises ValueError where it is none."""
    return Ranking(
        prompt=prompt, completions=tuple(texts), ranks=tuple(ranks), labeler=labeler, models=tuple(models),
        **{name: value for name, value in more.items() if value is not None},
    )  # fmt: skip


# ---------------------------------------------------------------- Label Studio


def from_label_studio(row: Mapping[str, Any], reading: Reading) -> Iterator[Record]:
    """The work in one task: what each annotation ranked (`ranker`, `pairwise`), rated (`rating`) or wrote (`textarea`).

    Raises:
        ValueError: something in it cannot be read for certain.
    """
    data = row["data"]
    for annotation in row["annotations"]:
        if annotation.get("was_cancelled"):
            reading.left_out["skipped by their labeler"] += 1
            continue
        results = [result for result in annotation.get("result") or () if reading.wants(str(result.get("from_name", "")))]
        more = {"created_at": _milliseconds(annotation.get("created_at")), "active_ms": _milliseconds_of(annotation.get("lead_time"))}
        found = list(_results(data, results, _who(annotation.get("completed_by")), more, reading))
        if not found:
            reading.left_out["without a ranking, rating or text"] += 1
        yield from found


def _who(completed_by: Any) -> str | None:
    """Whoever made an annotation: a number, or an account."""
    if isinstance(completed_by, dict):
        completed_by = completed_by.get("email") or completed_by.get("id")
    return None if completed_by is None else str(completed_by)


def _milliseconds(time: Any) -> int | None:
    return int(datetime.fromisoformat(time.replace("Z", "+00:00")).timestamp() * 1000) if isinstance(time, str) else None


def _milliseconds_of(seconds: Any) -> int | None:
    return int(seconds * 1000) if isinstance(seconds, int | float) else None


def _results(
    data: Mapping[str, Any], results: Sequence[Mapping[str, Any]], labeler: str | None, more: Mapping[str, Any], reading: Reading
) -> Iterator[Record]:
    ratings = [result for result in results if result.get("type") == "rating"]
    used = False
    for result in results:
        kind, value = result.get("type"), result.get("value") or {}
        if kind == "ranker":
            yield _bucketed(data, value.get("ranker"), labeler, more, reading)
        elif kind == "pairwise":
            used = True
            yield _pairwise(data, result, ratings, labeler, more, reading)
        elif kind == "textarea":
            written = value.get("text")
            _, prompt = prompt_of(data, reading)
            for text in [written] if isinstance(written, str) else written or ():
                yield Demonstration(prompt=prompt, completion=text, labeler=labeler, source="label-studio", **_given(more))
    for result in ratings if not used else ():
        name, prompt = prompt_of(data, reading)
        text = _shown(data, str(result.get("to_name", "")), reading, name)
        rating, note = reading.rating((result.get("value") or {}).get("rating"))
        yield RatedCompletion(prompt=prompt, completion=text, rating=rating, labeler=labeler, note=note, **_given(more))


def _given(more: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in more.items() if value is not None}


def _bucketed(data: Mapping[str, Any], value: Any, labeler: str | None, more: Mapping[str, Any], reading: Reading) -> Record:
    """A `ranker`: one list is an order; buckets are ranks whose items tie."""
    items = {str(item.get("id")): item for items in data.values() if isinstance(items, list) for item in items if isinstance(item, dict)}
    groups: dict[str, list[str]] = value if isinstance(value, dict) else {"": value if isinstance(value, list) else []}
    placed = {name: ids for name, ids in groups.items() if name != NOT_PLACED}
    if not reading.buckets and len(placed) <= 1:
        order = [[item] for item in next(iter(placed.values()), groups.get(NOT_PLACED, []))]
    else:
        order = [placed[name] for name in _in_order(list(placed), reading)]
    ids = [str(item) for tier in order for item in tier]
    if unknown := [item for item in ids if item not in items]:
        raise ValueError(f"item '{unknown[0]}' was ranked but is not in the task's data")
    ranks = [rank for rank, tier in enumerate(filter(None, order), start=1) for _ in tier]
    texts = [_item_text(items[item]) for item in ids]
    models = [str(items[item].get("model") or item) for item in ids]
    return ranked(prompt_of(data, reading)[1], texts, ranks, labeler, models, source="label-studio", **more)


def _in_order(names: list[str], reading: Reading) -> list[str]:
    """Buckets, best first. Raises ValueError where nothing says which is better."""
    if reading.buckets:
        if unknown := set(names) - set(reading.buckets):
            raise ValueError(f"bucket '{sorted(unknown)[0]}' is not in the labeling configuration")
        return [name for name in reading.buckets if name in names]
    numbers = {name: re.findall(r"\d+", name) for name in names}
    if any(len(found) != 1 for found in numbers.values()) or len({int(found[0]) for found in numbers.values()}) < len(names):
        raise ValueError(f"nothing says which of the buckets {', '.join(names)} is better; give the project's XML with --labeling-config")
    return sorted(names, key=lambda name: int(numbers[name][0]))


def _item_text(item: Mapping[str, Any]) -> str:
    for name in ITEM_TEXTS:
        if isinstance(item.get(name), str):
            return str(item[name])
    raise ValueError(f"item '{item.get('id')}' has no text (its fields: {', '.join(item)}); expected one of {', '.join(ITEM_TEXTS)}")


def _pairwise(
    data: Mapping[str, Any],
    result: Mapping[str, Any],
    ratings: Sequence[Mapping[str, Any]],
    labeler: str | None,
    more: Mapping[str, Any],
    reading: Reading,
) -> Record:
    """A `pairwise` choice, with the ratings of its two texts where both have one."""
    names = result.get("to_name", "")
    sides = [str(name).strip() for name in (names.split(",") if isinstance(names, str) else names)]
    if len(sides) != 2:
        raise ValueError(f"a pairwise choice is between two texts, found '{names}'")
    selected = (result.get("value") or {}).get("selected")
    if selected not in ("left", "right"):
        raise ValueError(f"a pairwise choice is 'left' or 'right', found {selected!r}")
    name, prompt = prompt_of(data, reading)
    given = {str(each.get("to_name")): reading.rating((each.get("value") or {}).get("rating"))[0] for each in ratings}
    return ranked(
        prompt, [_shown(data, side, reading, name) for side in sides], (1, 2) if selected == "left" else (2, 1), labeler, sides,
        ratings=tuple(given[side] for side in sides) if set(sides) <= given.keys() else None, source="label-studio", **more,
    )  # fmt: skip


def _shown(data: Mapping[str, Any], name: str, reading: Reading, prompt_field: str) -> str:
    """The text that a name on the page stands for."""
    text = data.get(reading.fields.get(name, name))
    if not isinstance(text, str):
        others = [key for key, value in data.items() if isinstance(value, str) and key != prompt_field]
        if name not in reading.fields and len(others) == 1:
            return str(data[others[0]])
        raise ValueError(f"no field is called '{name}' (fields found: {', '.join(data)}); give the project's XML with --labeling-config")
    return text


# ---------------------------------------------------------------- Argilla


@dataclass(frozen=True)
class Answer:
    """What one person said to one question."""

    question: str
    value: Any
    labeler: str | None
    status: str


def from_argilla(row: Mapping[str, Any], reading: Reading) -> Iterator[Record]:
    """The work in one record: rankings, ratings and texts, of each person. Raises ValueError as `from_label_studio`."""
    fields = row.get("fields")
    if not isinstance(fields, dict):
        fields = {name: value for name, value in row.items() if isinstance(value, str) and "." not in name and name not in ("id", "status")}
    name, prompt = prompt_of(fields, reading)
    completions = {key: value for key, value in fields.items() if key != name and isinstance(value, str) and not key.startswith("_")}
    for answer in _answers(row):
        if not reading.wants(answer.question):
            continue
        if answer.status not in ("submitted", "None", ""):
            reading.left_out[answer.status] += 1
        elif isinstance(answer.value, list | dict):
            yield _ranking(prompt, completions, answer)
        elif isinstance(answer.value, str):
            yield Demonstration(prompt=prompt, completion=answer.value, labeler=answer.labeler, source="argilla")
        elif answer.value is not None:
            rating, note = reading.rating(answer.value)
            text = _rated_text(completions, answer.question)
            yield RatedCompletion(prompt=prompt, completion=text, rating=rating, labeler=answer.labeler, note=note)


def _answers(row: Mapping[str, Any]) -> Iterator[Answer]:
    """Every answer in a record: nested as a list of objects, as columns (`question.responses`), or as lists beside each other."""
    nested = row.get("responses")
    if isinstance(nested, dict):
        for question, given in nested.items():
            if isinstance(given, dict):  # version 1: lists of the same length
                yield from _beside(question, given.get("value"), given.get("user_id"), given.get("status"))
            else:
                yield from (
                    Answer(question, each.get("value"), _name(each.get("user_id")), str(each.get("status"))) for each in given or ()
                )
        return
    for column, values in row.items():
        if column.endswith(".responses"):
            yield from _beside(column.removesuffix(".responses"), values, row.get(f"{column}.users"), row.get(f"{column}.status"))


def _beside(question: str, values: Any, people: Any, states: Any) -> Iterator[Answer]:
    values = values or []
    for number, value in enumerate(values):
        who = people[number] if isinstance(people, list) and number < len(people) else None
        state = states[number] if isinstance(states, list) and number < len(states) else None
        yield Answer(question, value, _name(who), str(state))


def _name(value: Any) -> str | None:
    return None if value is None else str(value)


def _ranking(prompt: str, completions: Mapping[str, str], answer: Answer) -> Record:
    """A ranking: an ordered list of names, names with ranks, or two lists beside each other."""
    value = answer.value
    if isinstance(value, dict):
        names, ranks = value.get("text") or value.get("value") or [], value.get("rank") or []
    elif value and isinstance(value[0], dict):
        names, ranks = [each.get("value") for each in value], [each.get("rank") for each in value]
    else:
        names, ranks = value, list(range(1, len(value) + 1))
    if len(names) != len(ranks) or not all(isinstance(rank, int) for rank in ranks):
        raise ValueError(f"question '{answer.question}': not a ranking ({str(value)[:80]})")
    known = {_plain(name): name for name in completions}
    if unknown := [name for name in names if _plain(name) not in known]:
        raise ValueError(
            f"question '{answer.question}' ranks '{unknown[0]}', but no field is called so (fields found: {', '.join(completions)}); "
            "name the questions that are to be read with --questions"
        )
    fields = [known[_plain(name)] for name in names]
    return ranked(prompt, [completions[name] for name in fields], ranks, answer.labeler, fields, source="argilla")


def _plain(name: object) -> str:
    """A name without the differences between `response-1`, `response_1` and `Response 1`."""
    return re.sub(r"[\W_]+", "", str(name)).lower()


def _rated_text(completions: Mapping[str, str], question: str) -> str:
    """The completion that a rating is about: the only one, or the one whose name is in the question's."""
    named: Iterable[str] = [name for name in completions if _plain(name) in _plain(question)] if len(completions) > 1 else completions
    found = list(named)
    if len(found) != 1:
        raise ValueError(
            f"question '{question}': nothing says which of the fields {', '.join(completions)} it rates; "
            "name the questions that are to be read with --questions"
        )
    return completions[found[0]]
