"""Mix records into others by share, with a system text before some: refusals and a list of forbidden uses.

A model learns that the list decides, and not the prompt, where it has seen harmful prompts refused with the list and
ordinary prompts answered with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from instructgpt.data.drop_report import DropReport, LocatedItem
from instructgpt.records import PromptFields, Record

_NOT_DRAWN = "added records beyond --share"


def mix_records(
    ordinary: Sequence[LocatedItem[Record]],
    added: Sequence[LocatedItem[Record]],
    share: float,
    rng: Random,
    report: DropReport,
) -> tuple[list[Record], list[Record]]:
    """Return all ordinary records and those that are added to them, so many that they are `share` of all.

    Where there are too few, all of them are added. The report counts those that are not drawn.
    """
    count = min(len(added), round(share * len(ordinary) / (1 - share)))
    selection = set(rng.sample(range(len(added)), count))
    selected = report.filter(list(added), [None if row in selection else _NOT_DRAWN for row in range(len(added))])
    return [record for _, record in ordinary], [record for _, record in selected]


def add_system_text(record: Record, text: str) -> Record:
    """Return the record with `text` as its system turn, before a system turn that it has."""
    assert isinstance(record, PromptFields)
    turns = [turn.model_dump() for turn in record.conversation]
    if turns[0]["role"] == "system":
        turns[0]["content"] = f"{text}\n\n{turns[0]['content']}"
    else:
        turns.insert(0, {"role": "system", "content": text})
    columns: dict[str, Any] = {name: value for name, value in record.to_dict().items() if name != "prompt"}
    return type(record).model_validate(columns | {"messages": turns})


def add_system_text_to_share(records: Sequence[Record], text: str, share: float, rng: Random) -> list[Record]:
    """Return the records, a random `share` of them with the system text."""
    selection = set(rng.sample(range(len(records)), round(share * len(records))))
    return [add_system_text(record, text) if row in selection else record for row, record in enumerate(records)]
