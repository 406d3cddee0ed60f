"""Readers of the JSON exports of Label Studio and Argilla.

Neither export marks the prompt and the completions. Common field names are recognized; options, or Label Studio's
labeling configuration, name others. An ambiguous record is an error, never a guess.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from instructgpt.errors import InputError
from instructgpt.label.vocabulary import MAX_RATING
from instructgpt.records import Demonstration, PromptFields, Ranking, Record, rescale_rating

_PROMPT_FIELDS = ("prompt", "messages", "instruction", "question", "input", "query", "context")
_ITEM_TEXT_FIELDS = ("body", "text", "completion", "answer", "response", "output", "html", "title")
"""Text fields of an item in a Label Studio list, in order of precedence."""
_UNRANKED_BUCKET = "_"
"""Label Studio: the list of items not moved into a bucket."""


class RatedCompletion(PromptFields):
    completion: str
    rating: int
    model: str = "unknown"
    labeler: str | None = None
    note: str = ""


@dataclass
class ThirdPartyReader:
    """Options for reading other tools' exports, and counts of the skipped parts."""

    prompt_field: str | None = None
    questions: tuple[str, ...] = ()
    """Controls or questions to read; empty for all."""
    rating_max: int = MAX_RATING
    fields: dict[str, str] = field(default_factory=dict)
    """Label Studio: name of a text element -> its data field."""
    buckets: list[str] = field(default_factory=list)
    """Label Studio: bucket names, best first."""
    left_out: Counter[str] = field(default_factory=Counter)

    def should_read(self, name: str) -> bool:
        return not self.questions or name in self.questions

    def parse_rating(self, value: Any) -> tuple[int, str]:
        """Rescale a rating to 1 to 7; return it with a note of the original. Raises ValueError outside of the scale."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= self.rating_max:
            raise ValueError(f"rating {value!r} is not between 1 and {self.rating_max}; set --rating-max")
        if self.rating_max == MAX_RATING:
            if value != int(value):
                raise ValueError(f"rating {value!r} is not an integer")
            return int(value), ""
        return int(rescale_rating(value, self.rating_max) + 0.5), f"rated {value:g} of {self.rating_max}"


def read_labeling_config(path: Path, reader: ThirdPartyReader) -> None:
    """Read text elements and the bucket order from Label Studio's labeling configuration. Raises InputError."""
    try:
        root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ElementTree.ParseError) as error:
        message = f"{path}: not a labeling configuration ({error}); save the project's Labeling Interface as XML"
        raise InputError(message) from error
    for element in root.iter():
        value, name = element.get("value", ""), element.get("name")
        if name and value.startswith("$"):
            reader.fields[name] = value[1:]
        if element.tag == "Bucket" and name:
            reader.buckets.append(name)


def is_label_studio(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("data"), dict) and isinstance(row.get("annotations"), list)


def is_argilla(row: Mapping[str, Any]) -> bool:
    nested = isinstance(row.get("fields"), dict) and "responses" in row
    return nested or any(name.endswith(".responses") for name in row)


def _find_prompt(fields: Mapping[str, Any], reader: ThirdPartyReader) -> tuple[str, str]:
    """Return (field name, prompt). Raises ValueError."""
    field_names = (reader.prompt_field,) if reader.prompt_field else _PROMPT_FIELDS
    for name in field_names:
        value = fields.get(name)
        if isinstance(value, list):  # a chat: join the turns
            value = "\n\n".join(str(turn.get("content", "")) for turn in value if isinstance(turn, dict))
        if isinstance(value, str) and value.strip():
            return name, value
    raise ValueError(f"no prompt (fields: {', '.join(fields) or 'none'}); name its field with --prompt-field")


def _make_ranking(
    prompt: str, texts: Sequence[str], ranks: Sequence[int], labeler: str | None, models: Sequence[str], **extra: Any
) -> Ranking:
    columns = {"prompt": prompt, "completions": tuple(texts), "ranks": tuple(ranks), "models": tuple(models)}
    return Ranking(**columns, labeler=labeler, **_drop_none(extra))


# ---------------------------------------------------------------- Label Studio


def parse_label_studio(row: Mapping[str, Any], reader: ThirdPartyReader) -> Iterator[Record]:
    """Yield a record per result of a task: `ranker`, `pairwise`, `rating` or `textarea`. Raises ValueError."""
    data = row["data"]
    for annotation in row["annotations"]:
        if annotation.get("was_cancelled"):
            reader.left_out["skipped annotations"] += 1
            continue
        results = annotation.get("result") or ()
        results = [result for result in results if reader.should_read(str(result.get("from_name", "")))]
        created_at, lead_time = annotation.get("created_at"), annotation.get("lead_time")
        extra = {"created_at": _timestamp_ms(created_at), "active_ms": _seconds_to_ms(lead_time)}
        records = list(_parse_results(data, results, _annotation_author(annotation.get("completed_by")), extra, reader))
        if not records:
            reader.left_out["annotations without a ranking, rating or text"] += 1
        yield from records


def _annotation_author(completed_by: Any) -> str | None:
    """Return the annotator's email address or id; the export has an id or an account object."""
    if isinstance(completed_by, dict):
        completed_by = completed_by.get("email") or completed_by.get("id")
    return None if completed_by is None else str(completed_by)


def _timestamp_ms(timestamp: Any) -> int | None:
    if not isinstance(timestamp, str):
        return None
    return int(datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp() * 1000)


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
            shared = {"prompt": prompt, "labeler": labeler, "source": "label-studio", **_drop_none(extra)}
            for text in [texts] if isinstance(texts, str) else texts or ():
                yield Demonstration(completion=text, **shared)
    # A pairwise record carries the ratings of its two texts; without one, each rating is a record of its own.
    for result in ratings if not has_pairwise else ():
        name, prompt = _find_prompt(data, reader)
        text = _resolve_text(data, str(result.get("to_name", "")), reader, name)
        rating, note = reader.parse_rating((result.get("value") or {}).get("rating"))
        shared = {"prompt": prompt, "labeler": labeler, "note": note, **_drop_none(extra)}
        yield RatedCompletion(completion=text, rating=rating, **shared)


def _drop_none(extra: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in extra.items() if value is not None}


def _parse_ranker(
    data: Mapping[str, Any], value: Any, labeler: str | None, extra: Mapping[str, Any], reader: ThirdPartyReader
) -> Record:
    """Parse a `ranker`: a single list is an order; items of one bucket tie."""
    lists = [value for value in data.values() if isinstance(value, list)]
    items = {str(item.get("id")): item for values in lists for item in values if isinstance(item, dict)}
    groups: dict[str, list[str]] = value if isinstance(value, dict) else {"": value if isinstance(value, list) else []}
    buckets = {name: ids for name, ids in groups.items() if name != _UNRANKED_BUCKET}
    if not reader.buckets and len(buckets) <= 1:
        tiers = [[item] for item in next(iter(buckets.values()), groups.get(_UNRANKED_BUCKET, []))]
    else:
        tiers = [buckets[name] for name in _order_buckets(list(buckets), reader)]
    ids = [str(item) for tier in tiers for item in tier]
    if unknown_items := [item for item in ids if item not in items]:
        raise ValueError(f"ranked item '{unknown_items[0]}' is not in the task's data")
    ranks = [rank for rank, tier in enumerate(filter(None, tiers), start=1) for _ in tier]
    texts = [_item_text(items[item]) for item in ids]
    models = [str(items[item].get("model") or item) for item in ids]
    return _make_ranking(_find_prompt(data, reader)[1], texts, ranks, labeler, models, source="label-studio", **extra)


def _order_buckets(names: list[str], reader: ThirdPartyReader) -> list[str]:
    """Order the buckets, best first, by the labeling configuration or a number in each name. Raises ValueError."""
    if reader.buckets:
        if unknown_names := set(names) - set(reader.buckets):
            raise ValueError(f"bucket '{sorted(unknown_names)[0]}' is not in the labeling configuration")
        return [name for name in reader.buckets if name in names]
    numbers = {name: re.findall(r"\d+", name) for name in names}
    if any(len(values) != 1 for values in numbers.values()) or len({int(n) for (n,) in numbers.values()}) < len(names):
        raise ValueError(f"the order of buckets {', '.join(names)} is unknown; give the XML with --labeling-config")
    return sorted(names, key=lambda name: int(numbers[name][0]))


def _item_text(item: Mapping[str, Any]) -> str:
    for name in _ITEM_TEXT_FIELDS:
        if isinstance(item.get(name), str):
            return str(item[name])
    expected = ", ".join(_ITEM_TEXT_FIELDS)
    raise ValueError(f"item '{item.get('id')}' has no text (fields: {', '.join(item)}); expected one of {expected}")


def _parse_pairwise(
    data: Mapping[str, Any],
    result: Mapping[str, Any],
    ratings: Sequence[Mapping[str, Any]],
    labeler: str | None,
    extra: Mapping[str, Any],
    reader: ThirdPartyReader,
) -> Record:
    """Parse a `pairwise` choice, with the ratings of its two texts if both have one."""
    names = result.get("to_name", "")
    sides = [str(name).strip() for name in (names.split(",") if isinstance(names, str) else names)]
    if len(sides) != 2:
        raise ValueError(f"a pairwise choice needs two texts, not '{names}'")
    selected = (result.get("value") or {}).get("selected")
    if selected not in ("left", "right"):
        raise ValueError(f"a pairwise choice must be 'left' or 'right', not {selected!r}")
    name, prompt = _find_prompt(data, reader)
    values = {str(row.get("to_name")): (row.get("value") or {}).get("rating") for row in ratings}
    rating_by_side = {side: reader.parse_rating(value)[0] for side, value in values.items()}
    side_ratings = tuple(rating_by_side[side] for side in sides) if set(sides) <= rating_by_side.keys() else None
    texts = [_resolve_text(data, side, reader, name) for side in sides]
    ranks = (1, 2) if selected == "left" else (2, 1)
    return _make_ranking(prompt, texts, ranks, labeler, sides, ratings=side_ratings, source="label-studio", **extra)


def _resolve_text(data: Mapping[str, Any], name: str, reader: ThirdPartyReader, prompt_field: str) -> str:
    text = data.get(reader.fields.get(name, name))
    if not isinstance(text, str):
        candidates = [key for key, value in data.items() if isinstance(value, str) and key != prompt_field]
        if name not in reader.fields and len(candidates) == 1:
            return str(data[candidates[0]])
        raise ValueError(f"no field '{name}' (fields: {', '.join(data)}); give the XML with --labeling-config")
    return text


# ---------------------------------------------------------------- Argilla


@dataclass(frozen=True)
class ArgillaAnswer:
    question: str
    value: Any
    labeler: str | None
    status: str


def parse_argilla(row: Mapping[str, Any], reader: ThirdPartyReader) -> Iterator[Record]:
    """Yield a record per answer: a ranking, rating or demonstration. Raises ValueError."""
    fields = row.get("fields")
    if not isinstance(fields, dict):
        texts = {name: value for name, value in row.items() if isinstance(value, str)}
        fields = {name: text for name, text in texts.items() if "." not in name and name not in ("id", "status")}
    prompt_field, prompt = _find_prompt(fields, reader)
    completions = {name: value for name, value in fields.items() if isinstance(value, str) and name[:1] != "_"}
    completions.pop(prompt_field, None)
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
    """Yield the answers of a record: nested objects, parallel lists, or `question.responses` columns."""
    nested = row.get("responses")
    if isinstance(nested, dict):
        for question, data in nested.items():
            if isinstance(data, dict):  # Argilla 1: parallel lists
                yield from _zip_answers(question, data.get("value"), data.get("user_id"), data.get("status"))
            else:
                for entry in data or ():
                    user, status = _user_name(entry.get("user_id")), str(entry.get("status"))
                    yield ArgillaAnswer(question, entry.get("value"), user, status)
        return
    for column, values in row.items():
        if column.endswith(".responses"):
            question = column.removesuffix(".responses")
            yield from _zip_answers(question, values, row.get(f"{column}.users"), row.get(f"{column}.status"))


def _zip_answers(question: str, values: Any, users: Any, statuses: Any) -> Iterator[ArgillaAnswer]:
    values = values or []
    for index, value in enumerate(values):
        user = users[index] if isinstance(users, list) and index < len(users) else None
        status = statuses[index] if isinstance(statuses, list) and index < len(statuses) else None
        yield ArgillaAnswer(question, value, _user_name(user), str(status))


def _user_name(value: Any) -> str | None:
    return None if value is None else str(value)


def _parse_ranking(prompt: str, completions: Mapping[str, str], answer: ArgillaAnswer) -> Record:
    """Parse a ranking: an ordered list of names, a list of names with ranks, or two parallel lists."""
    value = answer.value
    if isinstance(value, dict):
        names, ranks = value.get("text") or value.get("value") or [], value.get("rank") or []
    elif value and isinstance(value[0], dict):
        names, ranks = [row.get("value") for row in value], [row.get("rank") for row in value]
    else:
        names, ranks = value, list(range(1, len(value) + 1))
    if len(names) != len(ranks) or not all(isinstance(rank, int) for rank in ranks):
        raise ValueError(f"question '{answer.question}': not a ranking ({str(value)[:80]})")
    completion_names = {_normalize_name(name): name for name in completions}
    if unknown_names := [name for name in names if _normalize_name(name) not in completion_names]:
        raise ValueError(
            f"question '{answer.question}' ranks '{unknown_names[0]}', which is not a field (fields: "
            f"{', '.join(completions)}); select the questions to import with --questions"
        )
    fields = [completion_names[_normalize_name(name)] for name in names]
    texts = [completions[name] for name in fields]
    return _make_ranking(prompt, texts, ranks, answer.labeler, fields, source="argilla")


def _normalize_name(name: object) -> str:
    """Map `response-1`, `response_1` and `Response 1` to the same name."""
    return re.sub(r"[\W_]+", "", str(name)).lower()


def _find_rated_completion(completions: Mapping[str, str], question: str) -> str:
    """Return the only completion, or the one whose name is part of the question's name. Raises ValueError."""
    matches = list(completions)
    if len(matches) > 1:
        matches = [name for name in matches if _normalize_name(name) in _normalize_name(question)]
    if len(matches) != 1:
        raise ValueError(
            f"question '{question}': unclear which of the fields {', '.join(completions)} it rates; "
            "select the questions to import with --questions"
        )
    return completions[matches[0]]
