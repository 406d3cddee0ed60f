"""The test sets of simple mistakes: prompts by hand, checks against slow definitions, nothing in training."""

import re
from collections import Counter

import pytest

from instructgpt.evaluate.metrics.simple_mistakes import CheckedAnswer, measure_mistakes
from instructgpt.world import World
from instructgpt.world.simple_mistakes import MISTAKES


@pytest.fixture(scope="module")
def world():
    return World(3)


@pytest.fixture(scope="module")
def prompts(world):
    return world.mistake_prompts(40)


def test_sets_are_the_same_each_time_and_in_no_training_prompt(world, prompts):
    assert Counter(prompt.kind for prompt in prompts) == dict.fromkeys(MISTAKES, 40)
    assert [prompt.prompt for prompt in World(3).mistake_prompts(40)] == [prompt.prompt for prompt in prompts]
    assert {prompt.prompt for prompt in World(4).mistake_prompts(40)} != {prompt.prompt for prompt in prompts}
    training = {text for text, task in world.tasks.items() if not task.heldout_wording}
    assert training.isdisjoint(prompt.prompt for prompt in prompts)


def test_false_premises(world, prompts):
    for mistake in (prompt for prompt in prompts if prompt.kind == "false_premise"):
        premise = mistake.prompt[: mistake.prompt.index(".") + 1]
        (fact,) = [
            fact
            for fact in world.knowledge.facts
            if any(w.format(**fact.slot_words(fact.value)) in mistake.prompt for w in fact.relation.wordings)
        ]
        assert fact.group == "train"
        assert not world.knowledge.is_true(fact, premise)
        assert mistake.is_mistake(premise)
        assert not mistake.is_mistake(fact.to_sentence(fact.value))
        assert not mistake.is_mistake("I have no comment.")


@pytest.mark.parametrize("kind", ["hedging", "hedging_instruction"])
def test_hedging(world, prompts, kind):
    for mistake in (prompt for prompt in prompts if prompt.kind == kind):
        question = mistake.prompt.split(". ")[-1]
        fact = world.task(question).content.fact
        assert mistake.is_mistake("I have no comment.")
        assert not mistake.is_mistake(fact.to_sentence(fact.value))
        assert not mistake.is_mistake(fact.to_sentence(fact.myth or fact.value))  # wrong is another mistake
        assert (question != mistake.prompt) == (kind == "hedging_instruction")


def test_several_constraints(prompts):
    lengths = Counter()
    for mistake in (prompt for prompt in prompts if prompt.kind == "constraints"):
        animal, length, thing = re.fullmatch(
            r"Write a story about a (\w+) in (one sentence|two sentences)\. Use the word (\w+)\.", mistake.prompt
        ).groups()
        lengths[length] += 1
        short, long = f"The {animal} saw the {thing}.", f"The {animal} went home. Then it saw a {thing}."
        right, wrong = (short, long) if length == "one sentence" else (long, short)
        assert not mistake.is_mistake(right)
        assert mistake.is_mistake(wrong)
        assert mistake.is_mistake(right.replace(thing, "something"))
        assert mistake.is_mistake(right.replace(animal, "something"))
        assert mistake.is_mistake("")
    assert min(lengths.values()) > 5


def test_shares_of_mistakes():
    answers = [
        CheckedAnswer(model=model, kind=kind, prompt=str(number), is_mistake=number % step == 0)
        for model, step in (("sft", 2), ("ppo", 4))
        for kind in ("hedging", "constraints")
        for number in range(40)
    ]
    rows = measure_mistakes(answers)
    values = {(row.model, row.condition): row.value for row in rows if row.metric == "fails" and " - " not in row.model}
    assert values["sft", "hedging"] == 0.5
    assert values["ppo", "constraints"] == 0.25
