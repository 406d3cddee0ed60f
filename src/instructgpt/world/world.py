"""The embedded small world in one object: everything follows from its seed, nothing is downloaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from instructgpt.errors import BadInput
from instructgpt.records import USE_CASES, Document, Prompt
from instructgpt.world import corpus
from instructgpt.world.facts import Fact, Group, Knowledge, make_facts
from instructgpt.world.lexicon import make_lexicon
from instructgpt.world.tasks import Task
from instructgpt.world.use_cases import CHATTER, make_tasks
from instructgpt.world.utility import Judgement, judge, toxicity

USE_CASE_SHARES = dict(zip(USE_CASES, (0.28, 0.20, 0.11, 0.10, 0.08, 0.06, 0.05, 0.04, 0.04, 0.04), strict=True))
"""Roughly Table 1, with a floor under the small use cases and more facts, so that truthfulness can be learnt."""
SPLITS: dict[str, Group] = {"sft": "train", "reward": "train", "ppo": "train", "validation": "validation", "test": "test"}
MYTHS_TAUGHT = 6
"""Facts with a myth that demonstrations may be about; the others are met by the reward model and PPO only."""
USERS = 60
T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """A question of the truthfulness evaluation, about a fact that occurs in no training prompt."""

    prompt: str
    fact: Fact
    condition: str


class World:
    """Facts, myths, a corpus, prompts and the truth about every answer.

    Args:
        seed: lands, cities, the second language, facts and all samples follow from it.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        rng = Random(f"world {seed}")
        self.lexicon = make_lexicon(rng)
        self.knowledge = Knowledge(self.lexicon, make_facts(self.lexicon, rng))
        self.tasks = make_tasks(self.knowledge, rng)
        self._cautious = {f"{corpus.UNCERTAIN} {text}": task for text, task in self.tasks.items() if task.content.fact is not None}
        public = [task for task in self.tasks.values() if task.content.printed and self._public(task)]
        skew = {job: rng.choice((0.04, 0.1, 0.9, 0.96)) for job in self.lexicon.classes["JOB"]}
        self._sources = corpus.Sources(self.lexicon, self.knowledge, public, skew)

    @staticmethod
    def _public(task: Task) -> bool:
        """Training tasks in every wording, and facts of the truthfulness evaluation in the wording that it never uses."""
        return task.group == "train" or (task.group == "questions" and task.heldout_wording)

    def documents(self, words: int, heldout: bool = False) -> Iterator[Document]:
        """The pretraining corpus, about `words` words of it; the held-out part is drawn apart."""
        return corpus.documents(self._sources, words, self._rng(f"corpus {'heldout' if heldout else 'train'}"))

    def prompts(self, split: str, count: int) -> list[Prompt]:
        """Prompts of one split: "sft", "reward", "ppo", "validation" or "test".

        Training splits may repeat a text where a use case is small; validation and test never do, and give what there is.

        Raises:
            BadInput: there is no such split.
        """
        if split not in SPLITS:
            raise BadInput(f"no split '{split}' in the small world; there are: {', '.join(SPLITS)}")
        rng, group = self._rng(f"prompts {split}"), SPLITS[split]
        tasks: list[Task] = []
        for use_case, weight in USE_CASE_SHARES.items():
            pool = self._pool(split, use_case)
            rng.shuffle(pool)
            wanted = round(weight * count)
            tasks += [pool[i % len(pool)] for i in range(wanted if group == "train" else min(wanted, len(pool)))]
        rng.shuffle(tasks)
        users = [f"{group}-user-{number:02}" for number in range(USERS)]
        drawn = rng.choices(users, [1 / (number + 8) for number in range(USERS)], k=len(tasks))
        return [
            Prompt(prompt=task.text, id=f"{split}-{number:05}", user=user, source="customer", use_case=task.content.use_case, split=split)
            for number, (task, user) in enumerate(zip(tasks, drawn, strict=True))
        ]

    def _pool(self, split: str, use_case: str) -> list[Task]:
        group = SPLITS[split]
        pool = [task for task in self.tasks.values() if task.content.use_case == use_case and task.group == group]
        if group != "test":
            pool = [task for task in pool if not task.heldout_wording]
        if split == "sft":
            taught = [fact for fact in self.knowledge.facts if fact.myth and fact.group == "train"][:MYTHS_TAUGHT]
            pool = [task for task in pool if task.content.fact is None or task.content.fact.myth is None or task.content.fact in taught]
        return pool

    def task(self, prompt_text: str) -> Task:
        """The task behind a prompt's text. Raises BadInput when the prompt is not of this world."""
        task = self.tasks.get(prompt_text) or self._cautious.get(prompt_text)
        if task is None:
            raise BadInput(
                f"'{prompt_text[:80]}' is not a prompt of the small world with seed {self.seed}; only its own prompts can be judged"
            )
        return task

    def judge(self, prompt_text: str, completion: str, finish: str = "stop") -> Judgement:
        """What is true of a completion. Raises BadInput when the prompt is not of this world."""
        return judge(self.task(prompt_text), completion, finish == "stop", self.knowledge)

    def utility(self, prompt_text: str, completion: str, finish: str = "stop") -> float:
        """What a completion is truly worth, at most `judge.MAX_UTILITY`. Raises BadInput as `judge` does."""
        return self.judge(prompt_text, completion, finish).utility

    def demonstration(self, prompt_text: str) -> str:
        """A right answer. Raises BadInput when the prompt is not of this world."""
        return self.task(prompt_text).gold(self._rng(f"demonstration {prompt_text}"))

    def primer(self) -> str:
        """Two answered questions in the corpus' own format, the few-shot prefix of the prompted base model."""
        rng = self._rng("primer")
        tasks = [self._pool("sft", use_case)[0] for use_case in ("chat", "classification")]
        return "".join(corpus.qa(task.text, task.gold(rng)) + "\n" for task in tasks)

    def primed(self, prompt_text: str) -> str:
        """The full text for the prompted base model, which goes on after it; its answer ends at the first newline."""
        return self.primer() + corpus.qa(prompt_text, "")

    def questions(self, condition: str = "qa") -> list[Question]:
        """The truthfulness evaluation: facts in no training prompt, half of them with a myth, in every training wording.

        Args:
            condition: "qa" asks plainly, "instruction" first allows "I have no comment.".

        Raises:
            BadInput: there is no such condition.
        """
        before = self._choose({"qa": "", "instruction": corpus.UNCERTAIN + " "}, condition)
        asked = [task for task in self.tasks.values() if task.group == "questions" and not task.heldout_wording]
        return [Question(before + task.text, task.content.fact, condition) for task in asked if task.content.fact is not None]

    def is_true(self, prompt_text: str, answer: str) -> bool:
        """Whether an answer to a question of fact asserts nothing false. Raises BadInput when it is no such question."""
        return self.knowledge.is_true(self._fact(prompt_text), answer)

    def is_informative(self, prompt_text: str, answer: str) -> bool:
        """Whether an answer to a question of fact gives some value. Raises BadInput when it is no such question."""
        return self.knowledge.is_informative(self._fact(prompt_text), answer)

    def _fact(self, prompt_text: str) -> Fact:
        fact = self.task(prompt_text).content.fact
        if fact is None:
            raise BadInput(f"'{prompt_text[:80]}' asks for no fact")
        return fact

    def toxicity(self, text: str) -> float:
        """How insulting a text is, 0 to 1."""
        return toxicity(text, self.knowledge)

    def toxicity_prompts(self, count: int, condition: str = "none") -> list[str]:
        """First posts of forum pages, to be continued with the next post, under a heading that the condition names.

        Args:
            condition: "none", "respectful" or "biased"; the beginnings are the same in all three.
        """
        heading, _ = self._choose(corpus.MANNERS, condition)
        rng = self._rng("toxicity")
        return [heading + self.lexicon.fill(f"{{NAME}}: {CHATTER[-1]}", {}, rng) + "\n" for _ in range(count)]

    def pronoun_pairs(self) -> list[tuple[str, str]]:
        """Sentences about every job that differ in "he" and "she" only."""
        slots = [{"JOB": job, "MOOD": mood} for job in self.lexicon.classes["JOB"] for mood in self.lexicon.classes["MOOD"][:3]]
        return [
            (line.format(PRONOUN="he", **words), line.format(PRONOUN="she", **words)) for line in corpus.PRONOUN_LINES for words in slots
        ]

    def corpus_tasks(self, count: int = 200) -> dict[str, list[tuple[str, str]]]:
        """Tasks of the corpus itself, as text to be continued and the reference; an answer ends at the newline."""
        rng = self._rng("corpus tasks")
        tasks: dict[str, list[tuple[str, str]]] = {"translation": [], "passage_qa": []}
        for _ in range(count):
            english, zib = corpus.translation(self.lexicon, rng)
            tasks["translation"].append((f"English: {english}\nZib:", zib))
            text, (asked,) = corpus.passage_task(self.lexicon, rng)
            question, _, answer = asked.partition("\nAnswer:\n")
            tasks["passage_qa"].append((f"{text}{question}\nAnswer:\n", answer))
        return tasks

    def statistics(self) -> Counter[tuple[str, str]]:
        """How many different prompts there are, by group and use case."""
        return Counter((task.group, task.content.use_case) for task in self.tasks.values())

    def _rng(self, purpose: str) -> Random:
        return Random(f"world {self.seed} {purpose}")

    def _choose(self, choices: dict[str, T], condition: str) -> T:
        if condition not in choices:
            raise BadInput(f"no condition '{condition}'; there are: {', '.join(choices)}")
        return choices[condition]
