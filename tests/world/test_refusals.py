"""Requests for insults and harm, with the list and without: what is right, what is held out, the demo as before."""

from collections import Counter

import pytest

from instructgpt.evaluate.refusal.matcher import match_refusal
from instructgpt.records import Completion
from instructgpt.world import MAX_UTILITY, SimulatedLabelers, World
from instructgpt.world.refusals import FORBIDDEN_USES, REFUSALS


@pytest.fixture(scope="module")
def world():
    return World(2)


def test_what_is_right_depends_on_the_list_and_on_harm(world):
    labelers = SimulatedLabelers(world, noise=0)
    for task in world.refusal_prompts(25):
        demonstration = labelers.demonstrate([prompt(task.text)])[0].completion
        is_refusal = match_refusal(demonstration) == "full_refusal"
        assert is_refusal == (task.is_harmful and task.is_listed)
        best, plain = (
            world.utility(task.text, demonstration),
            world.refusals.by_text[task.text.removeprefix(f"{FORBIDDEN_USES} ")],
        )
        refusal = "I am sorry."
        granted = labelers.demonstrate([prompt(plain.text)])[0].completion
        other = granted if is_refusal else refusal
        assert best - world.utility(task.text, other) > 2
        insulting = any(word in demonstration for word in world.lexicon.classes["INSULT"])
        assert best == pytest.approx(MAX_UTILITY - (1.4 if insulting else 0))
        completions = [Completion(prompt=task.text, completion=text, model="m") for text in (demonstration, other)]
        assert labelers.rank([completions])[0].ranks == (1, 2)


def prompt(text):
    from instructgpt.records import Prompt

    return Prompt(prompt=text)


def test_exam_prompts_are_in_no_training_prompt(world):
    exam = {task.text for task in world.refusal_prompts(500)}
    cells = Counter((task.is_harmful, task.is_listed) for task in world.refusal_prompts(60))
    assert cells == dict.fromkeys([(True, False), (True, True), (False, False), (False, True)], 60)
    for split in ("sft", "reward", "ppo"):
        assert exam.isdisjoint(row.prompt for row in world.prompts(split, 2000, refusal_share=0.4))


def test_shares_of_training_prompts(world):
    rows = world.prompts("ppo", 1000, refusal_share=0.2)
    assert len(rows) == pytest.approx(1000, abs=5)
    assert len({row.id for row in rows}) == len(rows)
    tasks = [world.refusals.by_text.get(row.prompt) for row in rows]
    cells = Counter((task.is_harmful, task.is_listed) for task in tasks if task)
    assert cells == {(True, False): 50, (True, True): 50, (False, False): 30, (False, True): 30}
    listed = [
        row.prompt
        for row, task in zip(rows, tasks, strict=True)
        if task is None and row.prompt.startswith(FORBIDDEN_USES)
    ]
    assert len(listed) == 40
    for text in listed:
        assert world.utility(text, world.demonstration(text)) == pytest.approx(MAX_UTILITY)
    later = world.prompts("ppo", 1000, earlier_draws=1, refusal_share=0.2)
    assert {row.id for row in later}.isdisjoint(row.id for row in rows)


def test_the_demo_stays_as_it_was(world):
    assert world.prompts("reward", 300) == world.prompts("reward", 300, refusal_share=0.0)
    assert not any(row.prompt in world.refusals.by_text for row in world.prompts("reward", 3000))
    plain, other = ([d.text for d in world.documents(20_000, refusals=flag)] for flag in (False, True))
    requests = [task.text for task in world.refusals.plain]
    assert not any(request in text for text in plain for request in requests)
    assert any(request in text for text in other for request in requests)
    assert not any(FORBIDDEN_USES in text for text in other)


def test_refusals_have_only_words_of_the_corpus(world):
    """A small base cannot spell a word that it has never read, and labelers rank a misspelled refusal low."""
    words = {word.strip(".,") for document in world.documents(100_000) for word in document.text.split()}
    assert {word.strip(".,") for refusal in REFUSALS for word in refusal.split()} <= words
