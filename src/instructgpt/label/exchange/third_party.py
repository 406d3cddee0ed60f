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

from instructgpt.errors import InputError
from instructgpt.records import Demonstration, Ranking, Record

_PROMPT_FIELDS = ("prompt", "messages", "instruction", "question", "input", "query", "context")
_ITEM_TEXT_FIELDS = ("body", "text", "completion", "answer", "response", "output", "html", "title")
"""Where an item of a Label Studio list has its text, the first that is there."""
_UNRANKED_BUCKET = "_"
"""Label Studio: the list from which items were not moved into a bucket."""
MAX_RATING = 7


class RatedCompletion(Record):
    """One completion that was rated without being ranked."""

    prompt: str
    completion: str
    rating: int
    model: str = "unknown"
    labeler: str | None = None
    note: str = ""


@dataclass
class ThirdPartyReader:
    """How files of others are to be read, and what of them was left out."""

    prompt_field: str | None = None
    questions: tuple[str, ...] = ()
    """Only these controls or questions are read; all of them when empty."""
    rating_max: int = MAX_RATING
    fields: dict[str, str] = field(default_factory=dict)
    """Label Studio: the name of a text on the page -> the field it shows."""
    buckets: list[str] = field(default_factory=list)
    """Label Studio: names of buckets, best first."""
    left_out: Counter[str] = field(default_factory=Counter)

    def should_read(self, name: str) -> bool:
        """Whether a control or question is to be read."""
        return not self.questions or name in self.questions

    def parse_rating(self, value: Any) -> tuple[int, str]:
        """A rating on the scale from 1 to 7, and what was said where that was another. Raises ValueError outside of the scale."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= self.rating_max:
            raise ValueError(
                f"rating {value!r} is not between 1 and {self.rating_max}; --rating-max names the other tool's highest"
            )
        if self.rating_max == MAX_RATING:
            if value != int(value):
                raise ValueError(f"rating {value!r} is not a whole number")
            return int(value), ""
        return int(
            1 + (MAX_RATING - 1) * (value - 1) / (self.rating_max - 1) + 0.5
        ), f"rated {value:g} of {self.rating_max}"


def read_labeling_config(path: Path, reader: ThirdPartyReader) -> None:
    """Take the names of texts and the order of buckets from Label Studio's labeling configuration. Raises BadInput."""
    try:
        root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ElementTree.ParseError) as error:
        raise InputError(
            f"{path}: not a labeling configuration ({error}); save the project's Labeling Interface as XML"
        ) from error
    for element in root.iter():
        value, name = element.get("value", ""), element.get("name")
        if name and value.startswith("$"):
            reader.fields[name] = value[1:]
        if element.tag == "Bucket" and name:
            reader.buckets.append(name)


def is_label_studio(row: Mapping[str, Any]) -> bool:
    """Whether a row is a task of Label Studio's JSON export."""
    return isinstance(row.get("data"), dict) and isinstance(row.get("annotations"), list)


def is_argilla(row: Mapping[str, Any]) -> bool:
    """Whether a row is a record of Argilla's, nested or flat."""
    nested = isinstance(row.get("fields"), dict) and "responses" in row
    return nested or any(name.endswith(".responses") for name in row)


def _find_prompt(fields: Mapping[str, Any], reader: ThirdPartyReader) -> tuple[str, str]:
    """(name of the field, prompt). Raises ValueError where there is none."""
    field_names = (reader.prompt_field,) if reader.prompt_field else _PROMPT_FIELDS
    for name in field_names:
        value = fields.get(name)
        if isinstance(value, list):  # a chat: the turns as one text
            value = "\n\n".join(str(turn.get("content", "")) for turn in value if isinstance(turn, dict))
        if isinstance(value, str) and value.strip():
            return name, value
    raise ValueError(f"no prompt (fields found: {', '.join(fields) or 'none'}); name its field with --prompt-field")


def _make_ranking(
    prompt: str, texts: Sequence[str], ranks: Sequence[int], labeler: str | None, models: Sequence[str], **extra: Any
) -> Ranking:
    """A ranking by somebody elsewhere. Raises ValueError where it is none."""
    return Ranking(
        prompt=prompt,
        completions=tuple(texts),
        ranks=tuple(ranks),
        labeler=labeler,
        models=tuple(models),
        **{name: value for name, value in extra.items() if value is not None},
    )


# ---------------------------------------------------------------- Label Studio


def parse_label_studio(row: Mapping[str, Any], reader: ThirdPartyReader) -> Iterator[Record]:
    """The work in one task: what each annotation ranked (`ranker`, `pairwise`), rated (`rating`) or wrote (`textarea`).

    Raises:
        ValueError: something in it cannot be read for certain.
    """
    data = row["data"]
    for annotation in row["annotations"]:
        if annotation.get("was_cancelled"):
            reader.left_out["skipped by their labeler"] += 1
            continue
        results = [
            result for result in annotation.get("result") or () if reader.should_read(str(result.get("from_name", "")))
        ]
        extra = {
            "created_at": _timestamp_ms(annotation.get("created_at")),
            "active_ms": _seconds_to_ms(annotation.get("lead_time")),
        }
        records = list(_parse_results(data, results, _annotation_author(annotation.get("completed_by")), extra, reader))
        if not records:
            reader.left_out["without a ranking, rating or text"] += 1
        yield from records


def _annotation_author(completed_by: Any) -> str | None:
    """Whoever made an annotation: a number, or an account."""
    if isinstance(completed_by, dict):
        completed_by = completed_by.get("email") or completed_by.get("id")
    return None if completed_by is None else str(completed_by)


def _timestamp_ms(timestamp: Any) -> int | None:
    return (
        int(datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp() * 1000)
        if isinstance(timestamp, str)
        else None
    )


def _seconds_to_ms(seconds: Any) -> int | None:
    return int(seconds * 1000) if isinstance(seconds, int | float) else None


def _parse_results(
    data: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    labeler: str | None,
    extra: Mapping[str, Any],
    reader: ThirdPartyReader,
) -> Iterator[Record]:
    ratings = [result for result in results if result.get("type") == "rating"]
    has_pairwise = False
    for result in results:
        kind, value = result.get("type"), result.get("value") or {}
        if kind == "ranker":
            yield _parse_ranker(data, value.get("ranker"), labeler, extra, reader)
        elif kind == "pairwise":
            has_pairwise = True
            yield _parse_pairwise(data, result, ratings, labeler, extra, reader)
        elif kind == "textarea":
            texts = value.get("text")
            _, prompt = _find_prompt(data, reader)
            for text in [texts] if isinstance(texts, str) else texts or ():
                yield Demonstration(
                    prompt=prompt, completion=text, labeler=labeler, source="label-studio", **_drop_none(extra)
                )
    for result in ratings if not has_pairwise else ():
        name, prompt = _find_prompt(data, reader)
        text = _resolve_text(data, str(result.get("to_name", "")), reader, name)
        rating, note = reader.parse_rating((result.get("value") or {}).get("rating"))
        yield RatedCompletion(
            prompt=prompt, completion=text, rating=rating, labeler=labeler, note=note, **_drop_none(extra)
        )


def _drop_none(extra: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in extra.items() if value is not None}


def _parse_ranker(
    data: Mapping[str, Any], value: Any, labeler: str | None, extra: Mapping[str, Any], reader: ThirdPartyReader
) -> Record:
    """A `ranker`: one list is an order; buckets are ranks whose items tie."""
    items = {
        str(item.get("id")): item
        for items in data.values()
        if isinstance(items, list)
        for item in items
        if isinstance(item, dict)
    }
    groups: dict[str, list[str]] = value if isinstance(value, dict) else {"": value if isinstance(value, list) else []}
    buckets = {name: ids for name, ids in groups.items() if name != _UNRANKED_BUCKET}
    if not reader.buckets and len(buckets) <= 1:
        tiers = [[item] for item in next(iter(buckets.values()), groups.get(_UNRANKED_BUCKET, []))]
    else:
        tiers = [buckets[name] for name in _order_buckets(list(buckets), reader)]
    ids = [str(item) for tier in tiers for item in tier]
    if unknown_items := [item for item in ids if item not in items]:
        raise ValueError(f"item '{unknown_items[0]}' was ranked but is not in the task's data")
    ranks = [rank for rank, tier in enumerate(filter(None, tiers), start=1) for _ in tier]
    texts = [_item_text(items[item]) for item in ids]
    models = [str(items[item].get("model") or item) for item in ids]
    return _make_ranking(_find_prompt(data, reader)[1], texts, ranks, labeler, models, source="label-studio", **extra)


def _order_buckets(names: list[str], reader: ThirdPartyReader) -> list[str]:
    """Buckets, best first. Raises ValueError where nothing says which is better."""
    if reader.buckets:
        if unknown_names := set(names) - set(reader.buckets):
            raise ValueError(f"bucket '{sorted(unknown_names)[0]}' is not in the labeling configuration")
        return [name for name in reader.buckets if name in names]
    numbers = {name: re.findall(r"\d+", name) for name in names}
    if any(len(found) != 1 for found in numbers.values()) or len({int(found[0]) for found in numbers.values()}) < len(
        names
    ):
        raise ValueError(
            f"nothing says which of the buckets {', '.join(names)} is better; give the project's XML with --labeling-config"
        )
    return sorted(names, key=lambda name: int(numbers[name][0]))


def _item_text(item: Mapping[str, Any]) -> str:
    for name in _ITEM_TEXT_FIELDS:
        if isinstance(item.get(name), str):
            return str(item[name])
    raise ValueError(
        f"item '{item.get('id')}' has no text (its fields: {', '.join(item)}); expected one of {', '.join(_ITEM_TEXT_FIELDS)}"
    )


def _parse_pairwise(
    data: Mapping[str, Any],
    result: Mapping[str, Any],
    ratings: Sequence[Mapping[str, Any]],
    labeler: str | None,
    extra: Mapping[str, Any],
    reader: ThirdPartyReader,
) -> Record:
    """A `pairwise` choice, with the ratings of its two texts where both have one."""
    names = result.get("to_name", "")
    sides = [str(name).strip() for name in (names.split(",") if isinstance(names, str) else names)]
    if len(sides) != 2:
        raise ValueError(f"a pairwise choice is between two texts, found '{names}'")
    selected = (result.get("value") or {}).get("selected")
    if selected not in ("left", "right"):
        raise ValueError(f"a pairwise choice is 'left' or 'right', found {selected!r}")
    name, prompt = _find_prompt(data, reader)
    rating_by_side = {
        str(each.get("to_name")): reader.parse_rating((each.get("value") or {}).get("rating"))[0] for each in ratings
    }
    return _make_ranking(
        prompt,
        [_resolve_text(data, side, reader, name) for side in sides],
        (1, 2) if selected == "left" else (2, 1),
        labeler,
        sides,
        ratings=tuple(rating_by_side[side] for side in sides) if set(sides) <= rating_by_side.keys() else None,
        source="label-studio",
        **extra,
    )


def _resolve_text(data: Mapping[str, Any], name: str, reader: ThirdPartyReader, prompt_field: str) -> str:
    """The text that a name on the page stands for."""
    text = data.get(reader.fields.get(name, name))
    if not isinstance(text, str):
        candidates = [key for key, value in data.items() if isinstance(value, str) and key != prompt_field]
        if name not in reader.fields and len(candidates) == 1:
            return str(data[candidates[0]])
        raise ValueError(
            f"no field is called '{name}' (fields found: {', '.join(data)}); give the project's XML with --labeling-config"
        )
    return text


# ---------------------------------------------------------------- Argilla


@dataclass(frozen=True)
class ArgillaAnswer:
    """What one person said to one question."""

    question: str
    value: Any
    labeler: str | None
    status: str


def parse_argilla(row: Mapping[str, Any], reader: ThirdPartyReader) -> Iterator[Record]:
    """The work in one record: rankings, ratings and texts, of each person. Raises ValueError as `from_label_studio`."""
    fields = row.get("fields")
    if not isinstance(fields, dict):
        fields = {
            name: value
            for name, value in row.items()
            if isinstance(value, str) and "." not in name and name not in ("id", "status")
        }
    name, prompt = _find_prompt(fields, reader)
    completions = {
        key: value
        for key, value in fields.items()
        if key != name and isinstance(value, str) and not key.startswith("_")
    }
    for answer in _iter_answers(row):
        if not reader.should_read(answer.question):
            continue
        if answer.status not in ("submitted", "None", ""):
            reader.left_out[answer.status] += 1
        elif isinstance(answer.value, list | dict):
            yield _parse_ranking(prompt, completions, answer)
        elif isinstance(answer.value, str):
            yield Demonstration(prompt=prompt, completion=answer.value, labeler=answer.labeler, source="argilla")
        elif answer.value is not None:
            rating, note = reader.parse_rating(answer.value)
            text = _find_rated_completion(completions, answer.question)
            yield RatedCompletion(prompt=prompt, completion=text, rating=rating, labeler=answer.labeler, note=note)


def _iter_answers(row: Mapping[str, Any]) -> Iterator[ArgillaAnswer]:
    """Every answer in a record: nested as a list of objects, as columns (`question.responses`), or as lists beside each other."""
    nested = row.get("responses")
    if isinstance(nested, dict):
        for question, answer_data in nested.items():
            if isinstance(answer_data, dict):  # version 1: lists of the same length
                yield from _zip_answers(
                    question, answer_data.get("value"), answer_data.get("user_id"), answer_data.get("status")
                )
            else:
                yield from (
                    ArgillaAnswer(
                        question, entry.get("value"), _user_name(entry.get("user_id")), str(entry.get("status"))
                    )
                    for entry in answer_data or ()
                )
        return
    for column, values in row.items():
        if column.endswith(".responses"):
            yield from _zip_answers(
                column.removesuffix(".responses"), values, row.get(f"{column}.users"), row.get(f"{column}.status")
            )


def _zip_answers(question: str, values: Any, users: Any, statuses: Any) -> Iterator[ArgillaAnswer]:
    values = values or []
    for index, value in enumerate(values):
        user = users[index] if isinstance(users, list) and index < len(users) else None
        status = statuses[index] if isinstance(statuses, list) and index < len(statuses) else None
        yield ArgillaAnswer(question, value, _user_name(user), str(status))


def _user_name(value: Any) -> str | None:
    return None if value is None else str(value)


def _parse_ranking(prompt: str, completions: Mapping[str, str], answer: ArgillaAnswer) -> Record:
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
    completion_names = {_normalize_name(name): name for name in completions}
    if unknown_names := [name for name in names if _normalize_name(name) not in completion_names]:
        raise ValueError(
            f"question '{answer.question}' ranks '{unknown_names[0]}', but no field is called so (fields found: {', '.join(completions)}); "
            "name the questions that are to be read with --questions"
        )
    fields = [completion_names[_normalize_name(name)] for name in names]
    return _make_ranking(
        prompt, [completions[name] for name in fields], ranks, answer.labeler, fields, source="argilla"
    )


def _normalize_name(name: object) -> str:
    """A name without the differences between `response-1`, `response_1` and `Response 1`."""
    return re.sub(r"[\W_]+", "", str(name)).lower()


def _find_rated_completion(completions: Mapping[str, str], question: str) -> str:
    """The completion that a rating is about: the only one, or the one whose name is in the question's."""
    candidates: Iterable[str] = (
        [name for name in completions if _normalize_name(name) in _normalize_name(question)]
        if len(completions) > 1
        else completions
    )
    matches = list(candidates)
    if len(matches) != 1:
        raise ValueError(
            f"question '{question}': nothing says which of the fields {', '.join(completions)} it rates; "
            "name the questions that are to be read with --questions"
        )
    return completions[matches[0]]
