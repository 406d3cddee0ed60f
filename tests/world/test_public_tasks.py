"""Public tasks as instructions: right answers, several wordings, nothing that users ask.

pytest tests/world/test_public_tasks.py
"""

from __future__ import annotations

import re
from collections import Counter

import pytest

from instructgpt.records import Demonstration
from instructgpt.world import World
from instructgpt.world.public_tasks import PUBLIC_TASKS, demonstrate_public_tasks


@pytest.fixture(scope="module", params=[0, 5])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


@pytest.fixture(scope="module")
def demonstrations(world: World) -> list[Demonstration]:
    return demonstrate_public_tasks(world, 500)


def of_task(demonstrations: list[Demonstration], task: str) -> list[Demonstration]:
    return [row for row in demonstrations if row.task == task]  # type: ignore[attr-defined]


def test_tasks_take_turns_and_the_seed_decides(world: World, demonstrations: list[Demonstration]) -> None:
    counts = Counter(row.task for row in demonstrations)  # type: ignore[attr-defined]
    assert counts == dict.fromkeys(PUBLIC_TASKS, 100)
    assert demonstrate_public_tasks(World(world.seed), 500) == demonstrations
    large = [row.prompt for row in demonstrations if row.task in ("translation", "reading_comprehension")]  # type: ignore[attr-defined]
    assert len(set(large)) == len(large)


def test_no_user_asks_them(world: World, demonstrations: list[Demonstration]) -> None:
    assert not {row.prompt for row in demonstrations} & world.tasks.keys()


def test_translations_match_word_by_word(world: World, demonstrations: list[Demonstration]) -> None:
    back = {zib: english for english, zib in world.lexicon.zib.items()}
    directions = Counter()
    for row in of_task(demonstrations, "translation"):
        to_zib = row.completion.startswith("Ka ")
        directions[to_zib] += 1
        zib = row.completion if to_zib else re.search(r"Ka [^.]+\.", row.prompt)[0]  # type: ignore[index]
        english = re.search(r"The [^.]+\.", row.prompt)[0] if to_zib else row.completion  # type: ignore[index]
        words = [back[word] for word in zib.strip(".").split() if word.lower() != "ka"]
        assert sorted(words) == sorted(word for word in english.strip(".").split() if word.lower() != "the")
    assert min(directions.values()) > 20


def test_answers_of_passages_stand_in_them(demonstrations: list[Demonstration]) -> None:
    for row in of_task(demonstrations, "reading_comprehension"):
        assert row.completion in row.prompt
        assert row.completion.split()[0] in row.prompt.partition("?")[0]  # the person of the question


def test_classes_and_tenses_are_right(world: World, demonstrations: list[Demonstration]) -> None:
    classes = world.lexicon.classes
    for row in of_task(demonstrations, "sentiment"):
        assert any(word in row.prompt for word in classes[row.completion.upper()])
    for row in of_task(demonstrations, "topic"):
        words = set(re.findall(r"\w+", row.prompt)) - set(classes["KIND"])
        assert words & set(classes[row.completion.upper()])
    for row in of_task(demonstrations, "tense"):
        past = row.completion.split()[2]
        present = classes["PRESENT"][classes["PAST"].index(past)]
        assert row.completion.replace(past, present) in row.prompt


def test_wordings_vary(demonstrations: list[Demonstration]) -> None:
    for task in PUBLIC_TASKS:
        starts = {row.prompt.split()[0] for row in of_task(demonstrations, task)}
        assert len(starts) >= 3
