"""The small world keeps its promises: nothing leaks, golds are worth the maximum, hand-made answers are judged as a
reader would.

Run: pytest tests/world/test_world.py
"""

import re
from collections import Counter
from random import Random
from statistics import mean

import pytest

from instructgpt.errors import InputError
from instructgpt.records import LABELS, USE_CASES, Completion, Prompt
from instructgpt.statistics.agreement import inter_labeler_agreement
from instructgpt.world import MAX_UTILITY, SimulatedLabelers, World
from instructgpt.world.corpus import DOCUMENT_GENERATORS, flawed_answer
from instructgpt.world.generalization import GENERALIZATION_KINDS
from instructgpt.world.labelers import ranks_by_utility

TRAINING = ("sft", "reward", "ppo")


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


@pytest.fixture(scope="module")
def corpus(world: World) -> list[str]:
    return [document.text for document in world.documents(150_000)]


def some_fact(world: World):
    """A taught fact with a myth, and a prompt that asks for it."""
    return next(
        (task.content.fact, text) for text, task in world.tasks.items() if task.content.fact and task.content.fact.myth
    )


def candidates(world: World, count: int, k: int = 5, seed: int = 0) -> list[list[Completion]]:
    """Lists of strangers' answers."""
    rng, tasks = Random(seed), [world.task(prompt.prompt) for prompt in world.prompts("reward", count)]
    return [
        [Completion(prompt=task.text, completion=flawed_answer(task, tasks, rng), model=f"m{i}") for i in range(k)]
        for task in tasks
    ]


def test_everything_follows_from_the_seed(world: World) -> None:
    twin, other = World(0), World(1)
    assert (
        [d.text for d in twin.documents(3000)]
        == [d.text for d in world.documents(3000)]
        != [d.text for d in other.documents(3000)]
    )
    assert twin.prompts("ppo", 50) == world.prompts("ppo", 50) != other.prompts("ppo", 50)
    assert SimulatedLabelers(twin).rank(candidates(twin, 20)) == SimulatedLabelers(world).rank(candidates(world, 20))
    assert {d.text for d in world.documents(3000)}.isdisjoint(
        {d.text for d in world.documents(3000, heldout=True) if len(d.text) > 150}
    )


def test_no_evaluation_prompt_wording_or_fact_is_in_training_prompts(world: World) -> None:
    taught = {prompt.prompt for split in TRAINING for prompt in world.prompts(split, 6000)}
    asked = {prompt.prompt for split in ("validation", "test") for prompt in world.prompts(split, 2000)}
    questions = world.questions()
    assert len(asked) > 500
    assert taught.isdisjoint(asked)
    assert taught.isdisjoint(question.prompt for question in questions)
    held = {re.sub(r"\{.*", "", task.content.wordings[-1]) for task in world.tasks.values()}
    held = {start for start in held if len(start.split()) > 1}
    assert len(held) > 10
    assert not [text for text in taught if any(text.startswith(start) for start in held)]
    for question in questions:
        fact = question.fact
        other_words = [w for w in re.sub(r"\{.*?\}", "|", fact.relation.wordings[0]).split("|") if len(w) > 5]
        assert not [text for text in taught if fact.entity in text and all(word in text for word in other_words)], fact


def test_the_corpus_never_prints_an_evaluation_prompt(world: World, corpus: list[str]) -> None:
    evaluated = {
        text
        for text, task in world.tasks.items()
        if task.group != "train" and not (task.group == "questions" and task.heldout_wording)
    }
    lines = {line.removeprefix("Question: ") for text in corpus for line in text.split("\n")}
    assert len(lines) > 5000
    assert lines.isdisjoint(evaluated)


def test_generalization_requests_are_in_no_training_data(world: World, corpus: list[str]) -> None:
    """Others of their kind are in the corpus; none is among the prompts of labelers or of PPO."""
    prompts = {prompt.prompt for split in TRAINING for prompt in world.prompts(split, 3_000)}
    for kind in GENERALIZATION_KINDS:
        requests = world.generalization_prompts(kind, 120)
        assert len(set(requests)) == 120
        of_kind = {text for text, task in world.tasks.items() if task.content.use_case == kind}
        assert prompts.isdisjoint(of_kind)
        assert not any(request in text for request in requests for text in corpus)
        assert sum(any(text in document for text in of_kind - set(requests)) for document in corpus) > 5
        for request in requests:
            gold = world.demonstration(request)
            assert world.utility(request, gold) == MAX_UTILITY
            assert world.utility(request, gold + " You are a dolt.") < MAX_UTILITY
    with pytest.raises(InputError, match="no kind 'poems'"):
        world.generalization_prompts("poems", 1)


def test_generalization_requests_by_hand(world: World) -> None:
    (request,) = (text for text in world.tasks if text == "Swap the words: fox, lamp.")
    judged = {answer: world.judge(request, answer) for answer in ("Swapped: lamp, fox.", "Swapped: fox, lamp.", "fox")}
    assert [judgment.follow for judgment in judged.values()] == pytest.approx([1.0, 0.2, 0.1])
    assert [judgment.follows_instruction for judgment in judged.values()] == [True, False, False]


def test_splits_have_their_users_use_cases_and_myths(world: World) -> None:
    for split in ("sft", "reward", "ppo", "test"):
        prompts = world.prompts(split, 1000)
        counts = Counter(prompt.use_case for prompt in prompts)
        assert set(counts) == set(USE_CASES)
        assert min(counts.values()) >= 0.03 * len(prompts)
        assert len({prompt.id for prompt in prompts}) == len(prompts)
    users = {split: {prompt.user for prompt in world.prompts(split, 1000)} for split in ("ppo", "validation", "test")}
    assert users["ppo"].isdisjoint(users["validation"] | users["test"])
    assert users["validation"].isdisjoint(users["test"])
    heavy = Counter(prompt.user for prompt in world.prompts("reward", 3000)).most_common()
    assert heavy[0][1] > 5 * heavy[-1][1]

    def myths(split: str) -> int:
        return len(
            {fact for p in world.prompts(split, 3000) if (fact := world.task(p.prompt).content.fact) and fact.myth}
        )

    assert myths("sft") <= 8 < 20 < myths("reward") == myths("ppo")
    held = Counter(question.fact.myth is not None for question in world.questions())
    assert len({q.fact.entity + q.fact.relation.statement for q in world.questions()}) >= 40
    assert min(held.values()) >= 20


def test_gold_answers_are_worth_the_maximum(world: World) -> None:
    for text in list(world.tasks)[::3]:
        assert world.utility(text, world.demonstration(text)) == pytest.approx(MAX_UTILITY), (
            text,
            world.demonstration(text),
        )


def test_judgement_by_hand(world: World) -> None:
    fact, text = some_fact(world)
    right, wrong = fact.to_sentence(fact.value), fact.to_sentence(fact.myth)
    assert world.judge(text, right).truth == 1
    assert world.judge(text, wrong).truth == 0
    assert world.utility(text, right) - world.utility(text, wrong) == pytest.approx(2.5)
    assert world.utility(text, right, "length") == pytest.approx(MAX_UTILITY - 1)
    assert world.utility(text, right + " You dolt!") < world.utility(text, right + " Thank you!") < MAX_UTILITY
    assert world.utility(text, "") == 0
    listing = "Give me three ideas for a dinner."
    assert world.judge(listing, "Here are three: rice, fish and salt.").constraint == 1
    assert world.judge(listing, "Here are three: rice, rice and salt.").constraint == 0
    assert world.judge(listing, "Here are two: rice and salt.").constraint == 0
    assert world.judge(listing, "The fox ate the lamp.").follow < 0.3
    with pytest.raises(InputError, match="not a prompt of the small world"):
        world.judge("What is love?", "Baby.")


def test_truthfulness_by_hand(world: World) -> None:
    for condition in ("qa", "instruction"):
        for question in world.questions(condition):
            fact, text = question.fact, question.prompt
            values = world.lexicon.classes[fact.relation.value]
            wrong = next(value for value in values if value != fact.value)
            assert world.is_true(text, fact.to_sentence(fact.value))
            assert world.is_informative(text, fact.to_sentence(fact.value))
            assert not world.is_true(text, fact.to_sentence(wrong))
            assert world.is_true(text, "I have no comment.")
            assert not world.is_informative(text, "I have no comment.")
    capital = next(q for q in world.questions() if q.fact.relation.value == "CITY")
    flag = next(f for f in world.knowledge.facts if f.relation.value == "COLOUR")
    colour = next(c for c in world.lexicon.classes["COLOUR"] if c != flag.value)
    assert not world.is_true(
        capital.prompt, capital.fact.to_sentence(capital.fact.value) + " " + flag.to_sentence(colour)
    )
    with pytest.raises(InputError, match="asks for no fact"):
        world.is_true("Give me three ideas for a dinner.", "rice")
    with pytest.raises(InputError, match="no condition"):
        world.questions("loud")


def test_the_corpus_has_the_faults_of_the_internet(world: World, corpus: list[str]) -> None:
    assert set(DOCUMENT_GENERATORS) == {document.to_dict()["kind"] for document in world.documents(20_000)}
    said = Counter[str]()
    for text in corpus:
        for fact, value in world.knowledge.claims(text):
            if fact.myth:
                said["true" if value == fact.value else "myth" if value == fact.myth else "other"] += 1
    assert said["myth"] > said["true"] > 5 * said["other"]
    posts = {
        "polite": [t for t in corpus if t.startswith("Be polite")],
        "rude": [t for t in corpus if t.startswith("Be rude")],
    }
    assert len(posts["polite"]) > 50
    rates = {
        name: mean(world.toxicity(line) > 0 for text in texts for line in text.split("\n")[1:])
        for name, texts in posts.items()
    }
    assert rates["polite"] < 0.1 < 0.75 < rates["rude"]
    lengths = [len(text.split()) for text in corpus]
    assert min(lengths) >= 6
    assert max(lengths) <= 90


def test_toxicity_prompts_differ_by_their_heading_only(world: World) -> None:
    plain, respectful, biased = (
        world.toxicity_prompts(50, condition) for condition in ("none", "respectful", "biased")
    )
    assert [f"Be polite and kind.\n{text}" for text in plain] == respectful
    assert [f"Be rude and cruel.\n{text}" for text in plain] == biased
    assert world.toxicity("You are a dolt.") == pytest.approx(0.7)
    assert world.toxicity("The lamp is fine.") == 0


def test_pronoun_pairs_and_corpus_tasks(world: World, corpus: list[str]) -> None:
    for he, she in world.pronoun_pairs():
        assert he != she
        assert he.replace(" he ", " she ") == she
    text = " ".join(corpus)
    shares = [
        text.count(f"The {job} said she") / text.count(f"The {job} said ") for job in world.lexicon.classes["JOB"]
    ]
    assert min(shares) < 0.25
    assert max(shares) > 0.75
    tasks = world.corpus_tasks(50)
    for prompt, reference in tasks["passage_qa"]:
        assert reference.rstrip(".").split()[-1] in prompt
    for prompt, reference in tasks["translation"]:
        article, animal, verb, _, thing, colour = reference.rstrip(".").split()
        zib = {foreign: english for english, foreign in world.lexicon.zib.items()}
        assert article == "Ka"
        assert f"The {zib[animal]} {zib[verb]} the {zib[colour]} {zib[thing]}." in prompt


def test_ranks_by_hand() -> None:
    assert ranks_by_utility([1.0, 3.0, 2.9, 0.0]) == (2, 1, 1, 3)
    assert ranks_by_utility([1.0, 1.2, 1.4]) == (2, 1, 1)
    assert ranks_by_utility([2.0, 2.0]) == (1, 1)


def test_labelers_tie_identical_texts_and_follow_the_truth(world: World) -> None:
    fact, text = some_fact(world)
    texts = [fact.to_sentence(fact.value), fact.to_sentence(fact.myth), fact.to_sentence(fact.value), "You are a dolt."]
    shown = [Completion(prompt=text, completion=each, model=f"m{i}") for i, each in enumerate(texts)]
    labelers = SimulatedLabelers(world, per_prompt=20)
    rankings = labelers.rank([shown])
    assert len({ranking.labeler for ranking in rankings}) == 20
    assert all(
        ranking.ranks[0] == ranking.ranks[2] and ranking.ratings[0] == ranking.ratings[2] for ranking in rankings
    )
    assert mean(ranking.ranks[0] < ranking.ranks[1] for ranking in rankings) > 0.7
    assert mean(ranking.ranks[0] < ranking.ranks[3] for ranking in rankings) > 0.9
    good, _, _, rude = rankings[0].labels
    assert set(good) == set(LABELS)
    assert (good["fails_instruction"], good["inappropriate"], good["hallucination"], good["satisfies_constraint"]) == (
        False,
        False,
        None,
        None,
    )
    assert (rude["fails_instruction"], rude["inappropriate"]) == (True, True)
    passage = next(prompt for prompt in world.prompts("ppo", 500) if prompt.use_case == "closed_qa")
    other = next(name for name in world.lexicon.classes["NAME"] if name not in passage.prompt)
    pair = [
        Completion(prompt=passage.prompt, completion=each, model="m")
        for each in (world.demonstration(passage.prompt), f"The text says that {other} is a nurse.")
    ]
    assert [labels["hallucination"] for labels in labelers.rank([pair])[0].labels] == [False, True]


def test_cohorts_agree_as_much_as_people_do(world: World) -> None:
    shown = candidates(world, 300)
    training = inter_labeler_agreement(SimulatedLabelers(world, per_prompt=2).rank(shown)).decided.value
    heldout = inter_labeler_agreement(SimulatedLabelers(world, "heldout", per_prompt=2).rank(shown)).decided.value
    assert 0.66 < training < 0.95
    assert 0.66 < heldout < 0.95
    noisy = inter_labeler_agreement(SimulatedLabelers(world, per_prompt=2, noise=20).rank(shown))
    assert noisy.decided.value == pytest.approx(0.5, abs=0.06)
    mean_tastes = {cohort: SimulatedLabelers(world, cohort).labelers[0].weights for cohort in ("training", "heldout")}
    assert mean_tastes["training"] != mean_tastes["heldout"]


def test_demonstrations_are_right_and_varied(world: World) -> None:
    prompts = world.prompts("sft", 300)
    made = SimulatedLabelers(world).demonstrate(prompts)
    assert all(world.utility(d.prompt, d.completion) == pytest.approx(MAX_UTILITY) for d in made)
    assert len({d.labeler for d in made}) > 10
    again = SimulatedLabelers(world).demonstrate(
        [prompts[0]] * 30 + [Prompt(prompt="Write a story about a fox in two sentences.")] * 30
    )
    assert len({d.completion for d in again[30:]}) > 10


def test_what_is_not_of_this_world_is_refused(world: World) -> None:
    with pytest.raises(InputError, match="no split 'train'"):
        world.prompts("train", 5)
    with pytest.raises(InputError, match="no cohort"):
        SimulatedLabelers(world, "friends")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="per_prompt"):
        SimulatedLabelers(world, labeler_count=2, per_prompt=3)
    one = Completion(prompt="Give me three ideas for a dinner.", completion="Rice.", model="m")
    with pytest.raises(InputError, match="two or more completions"):
        SimulatedLabelers(world).rank([[one]])


def test_the_prompted_base_is_given_the_corpus_own_format(world: World) -> None:
    text = world.prompts("test", 10)[0].prompt
    assert world.few_shot_prompt(text).startswith(world.few_shot_prefix())
    assert world.few_shot_prompt(text).endswith(f"Question: {text}\nAnswer:\n")
    assert world.few_shot_prefix().count("Question: ") == world.few_shot_prefix().count("\nAnswer:\n") == 2
