"""The embedded small world as one object: everything follows from its seed, nothing is downloaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from random import Random
from typing import TypeVar

from instructgpt.errors import InputError
from instructgpt.records import USE_CASES, Document, Prompt
from instructgpt.world import corpus
from instructgpt.world.facts import Fact, Group, Knowledge, make_facts
from instructgpt.world.generalization import GENERALIZATION_KINDS, generalization_contents
from instructgpt.world.lexicon import make_lexicon
from instructgpt.world.refusals import FORBIDDEN_USES, TRAINING_CELLS, RefusalTask, make_refusal_tasks
from instructgpt.world.simple_mistakes import MistakePrompt, make_mistake_prompts
from instructgpt.world.tasks import WorldTask
from instructgpt.world.use_cases import CHATTER, add_tasks, make_tasks
from instructgpt.world.utility import CompletionJudgment, evaluate_completion, measure_insults

_USE_CASE_SHARES = dict(zip(USE_CASES, (0.28, 0.20, 0.11, 0.10, 0.08, 0.06, 0.05, 0.04, 0.04, 0.04), strict=True))
"""Roughly Table 1, with a minimum for small use cases and more facts, so that truthfulness can be learned."""
_SPLIT_GROUPS: dict[str, Group] = {
    "sft": "train",
    "reward": "train",
    "ppo": "train",
    "validation": "validation",
    "test": "test",
}
_SFT_MYTH_COUNT = 6
"""Facts with a myth in demonstrations; the others occur only in rewards and PPO prompts."""
_USER_COUNT = 60
_T = TypeVar("_T")


@dataclass(frozen=True)
class FactQuestion:
    """A truthfulness question about a fact that occurs in no training prompt."""

    prompt: str
    fact: Fact
    condition: str


class World:
    """Facts, myths, corpus, prompts and the truth about every answer, all from `seed`."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        rng = Random(f"world {seed}")
        self.lexicon = make_lexicon(rng)
        self.knowledge = Knowledge(self.lexicon, make_facts(self.lexicon, rng))
        self.tasks = make_tasks(self.knowledge, rng) | self._make_generalization_tasks()
        self._cautious = {
            f"{corpus.UNCERTAINTY_INSTRUCTION} {text}": task
            for text, task in self.tasks.items()
            if task.content.fact is not None
        }
        self.refusals = make_refusal_tasks(self.lexicon, self._rng("refusals"))
        public_tasks = [task for task in self.tasks.values() if task.content.in_corpus and self._is_public(task)]
        skew = {job: rng.choice((0.04, 0.1, 0.9, 0.96)) for job in self.lexicon.classes["JOB"]}
        self._sources = corpus.CorpusSources(self.lexicon, self.knowledge, public_tasks, skew)

    def _make_generalization_tasks(self) -> dict[str, WorldTask]:
        """Return the requests of no use case; those of the group "train" are in the corpus, in no prompt."""
        rng, tasks = self._rng("generalization"), dict[str, WorldTask]()
        for content in generalization_contents(self.lexicon, rng):
            add_tasks(tasks, content, rng.choices(("train", "test"), (0.75, 0.25))[0], self.lexicon)
        return tasks

    @staticmethod
    def _is_public(task: WorldTask) -> bool:
        """Return whether the corpus may contain the task: training tasks, and evaluation facts in other wordings."""
        return task.group == "train" or (task.group == "questions" and task.heldout_wording)

    def documents(self, words: int, heldout: bool = False, refusals: bool = False) -> Iterator[Document]:
        """Yield about `words` words of pretraining documents; the held-out part is sampled separately.

        With `refusals`, they also have requests for insults, harm and their opposites, all of them granted.
        """
        sources = self._sources
        if refusals:
            requests = [task for task in self.refusals.plain if task.group == "train" and not task.heldout_wording]
            sources = replace(sources, tasks=[*sources.tasks, *requests])
        return corpus.generate_documents(sources, words, self._rng(f"corpus {'heldout' if heldout else 'train'}"))

    def prompts(self, split: str, count: int, earlier_draws: int = 0, refusal_share: float = 0.0) -> list[Prompt]:
        """Return prompts of a split: "sft", "reward", "ppo", "validation" or "test".

        Training splits may repeat a text where a use case is small; validation and test never do and may return fewer.
        After `earlier_draws` of as many training prompts, each use case goes on with its next texts. `refusal_share` of
        the training prompts are about refusals.

        Raises:
            InputError: no such split.
        """
        if split not in _SPLIT_GROUPS:
            raise InputError(f"no split '{split}' in the small world; there are: {', '.join(_SPLIT_GROUPS)}")
        rng, group = self._rng(f"prompts {split}"), _SPLIT_GROUPS[split]
        num_refusals = round(refusal_share * count)
        texts = self._refusal_texts(split, num_refusals, earlier_draws)
        count -= num_refusals
        tasks: list[WorldTask] = []
        for use_case, weight in _USE_CASE_SHARES.items():
            pool = self._pool(split, use_case)
            rng.shuffle(pool)
            target_count = round(weight * count)
            first = earlier_draws * target_count
            tasks += [
                pool[(first + i) % len(pool)]
                for i in range(target_count if group == "train" else min(target_count, len(pool)))
            ]
        rows = [(task.text, task.content.use_case) for task in tasks] + texts
        rng.shuffle(rows)
        users = [f"{group}-user-{index:02}" for index in range(_USER_COUNT)]
        sampled_users = rng.choices(users, [1 / (index + 8) for index in range(_USER_COUNT)], k=len(rows))
        return [
            Prompt(
                prompt=text,
                id=f"{split}-{earlier_draws * len(rows) + index:05}",
                user=user,
                source="customer",
                use_case=use_case,
                split=split,
            )
            for index, ((text, use_case), user) in enumerate(zip(rows, sampled_users, strict=True))
        ]

    def _refusal_texts(self, split: str, count: int, earlier_draws: int) -> list[tuple[str, str]]:
        """Return (text, use case) of training prompts about refusals, and of ordinary prompts with the list."""
        rng = self._rng(f"refusals {split}")
        rows: list[tuple[str, str]] = []
        for (is_harmful, is_listed), share in TRAINING_CELLS.items():
            pool = self.refusals.pool("train", is_harmful=is_harmful, is_listed=is_listed)
            rng.shuffle(pool)
            number = round(share * count)
            rows += [
                (pool[(earlier_draws * number + i) % len(pool)].text, pool[0].content.use_case) for i in range(number)
            ]
        ordinary = [task for use_case in _USE_CASE_SHARES for task in self._pool(split, use_case)]
        rng.shuffle(ordinary)
        number = max(0, count - len(rows))
        listed = [ordinary[(earlier_draws * number + i) % len(ordinary)] for i in range(number)]
        return rows + [(f"{FORBIDDEN_USES} {task.text}", task.content.use_case) for task in listed]

    def refusal_prompts(self, count: int) -> list[RefusalTask]:
        """Return up to `count` test prompts for each of harmful or safe, with the list of forbidden uses or without."""
        rng = self._rng("refusal exam")
        tasks: list[RefusalTask] = []
        for is_harmful, is_listed in product((True, False), (False, True)):
            pool = self.refusals.pool("test", is_harmful=is_harmful, is_listed=is_listed)
            tasks += rng.sample(pool, min(count, len(pool)))
        return tasks

    def _pool(self, split: str, use_case: str) -> list[WorldTask]:
        group = _SPLIT_GROUPS[split]
        pool = [task for task in self.tasks.values() if task.content.use_case == use_case and task.group == group]
        if group != "test":
            pool = [task for task in pool if not task.heldout_wording]
        if split == "sft":
            taught = [fact for fact in self.knowledge.facts if fact.myth and fact.group == "train"][:_SFT_MYTH_COUNT]
            pool = [
                task
                for task in pool
                if task.content.fact is None or task.content.fact.myth is None or task.content.fact in taught
            ]
        return pool

    def task(self, prompt_text: str) -> WorldTask:
        """Return the task of a prompt. Raises InputError for a prompt outside this world."""
        task = self.tasks.get(prompt_text) or self._cautious.get(prompt_text) or self.refusals.by_text.get(prompt_text)
        if task is None and prompt_text.startswith(f"{FORBIDDEN_USES} "):
            task = self.tasks.get(prompt_text.removeprefix(f"{FORBIDDEN_USES} "))
        if task is None:
            raise InputError(
                f"'{prompt_text[:80]}' is not a prompt of the small world with seed {self.seed}; only its own prompts "
                "can be judged"
            )
        return task

    def judge(self, prompt_text: str, completion: str, finish: str = "stop") -> CompletionJudgment:
        """Judge a completion. Raises InputError for a prompt outside this world."""
        return evaluate_completion(self.task(prompt_text), completion, finish == "stop", self.knowledge)

    def utility(self, prompt_text: str, completion: str, finish: str = "stop") -> float:
        """Return the true utility, at most `utility.MAX_UTILITY`. Raises InputError as `judge` does."""
        return self.judge(prompt_text, completion, finish).utility

    def demonstration(self, prompt_text: str) -> str:
        """Return a right answer. Raises InputError for a prompt outside this world."""
        return self.task(prompt_text).gold_answer(self._rng(f"demonstration {prompt_text}"))

    def few_shot_prefix(self) -> str:
        """Return two answered questions in the corpus format, for the prompted base model."""
        rng = self._rng("primer")
        tasks = [self._pool("sft", use_case)[0] for use_case in ("chat", "classification")]
        return "".join(corpus.format_qa(task.text, task.gold_answer(rng)) + "\n" for task in tasks)

    def few_shot_prompt(self, prompt_text: str) -> str:
        """Return the full text for the prompted base model; its answer ends at the first newline."""
        return self.few_shot_prefix() + corpus.format_qa(prompt_text, "")

    def questions(self, condition: str = "qa") -> list[FactQuestion]:
        """Return the truthfulness questions: facts in no training prompt, half with a myth, in every training wording.

        Args:
            condition: "qa" asks plainly, "instruction" first allows "I have no comment.".

        Raises:
            InputError: no such condition.
        """
        prefix = self._lookup_condition({"qa": "", "instruction": corpus.UNCERTAINTY_INSTRUCTION + " "}, condition)
        tasks = [task for task in self.tasks.values() if task.group == "questions" and not task.heldout_wording]
        return [
            FactQuestion(prefix + task.text, task.content.fact, condition)
            for task in tasks
            if task.content.fact is not None
        ]

    def generalization_prompts(self, kind: str, count: int) -> list[str]:
        """Return requests that are in no training data: of `GENERALIZATION_KINDS`. Raises InputError for another kind.

        Not even the corpus has them; it has others of their kind.
        """
        if kind not in GENERALIZATION_KINDS:
            raise InputError(f"no kind '{kind}'; there are: {', '.join(GENERALIZATION_KINDS)}")
        pool = [text for text, task in self.tasks.items() if task.content.use_case == kind and task.group == "test"]
        return self._rng(f"generalization {kind}").sample(pool, min(count, len(pool)))

    def is_true(self, prompt_text: str, answer: str) -> bool:
        """Return whether an answer states nothing false.

        Raises InputError for a prompt that is not a question of fact.
        """
        return self.knowledge.is_true(self._fact(prompt_text), answer)

    def is_informative(self, prompt_text: str, answer: str) -> bool:
        """Return whether an answer gives a value. Raises InputError for a prompt that is not a question of fact."""
        return self.knowledge.is_informative(self._fact(prompt_text), answer)

    def _fact(self, prompt_text: str) -> Fact:
        fact = self.task(prompt_text).content.fact
        if fact is None:
            raise InputError(f"'{prompt_text[:80]}' asks for no fact")
        return fact

    def mistake_prompts(self, count: int) -> list[MistakePrompt]:
        """Return up to `count` prompts of each kind of simple mistake (paper, section 4.3), always the same."""
        return make_mistake_prompts(self.knowledge, self._rng("simple mistakes"), count)

    def toxicity(self, text: str) -> float:
        return measure_insults(text, self.knowledge)

    def toxicity_prompts(self, count: int, condition: str = "none") -> list[str]:
        """Return first posts of forum pages, to be continued, under a heading set by the condition.

        Args:
            condition: "none", "respectful" or "biased"; the posts are the same in all three.
        """
        heading, _ = self._lookup_condition(corpus.FORUM_HEADINGS, condition)
        rng = self._rng("toxicity")
        return [heading + self.lexicon.fill(f"{{NAME}}: {CHATTER[-1]}", {}, rng) + "\n" for _ in range(count)]

    def pronoun_pairs(self) -> list[tuple[str, str]]:
        """Return sentence pairs about every job that differ only in "he" and "she"."""
        slots = [
            {"JOB": job, "MOOD": mood}
            for job in self.lexicon.classes["JOB"]
            for mood in self.lexicon.classes["MOOD"][:3]
        ]
        return [
            (line.format(PRONOUN="he", **words), line.format(PRONOUN="she", **words))
            for line in corpus.PRONOUN_TEMPLATES
            for words in slots
        ]

    def corpus_tasks(self, count: int = 200) -> dict[str, list[tuple[str, str]]]:
        """Return the corpus tasks as (text to continue, reference); an answer ends at the newline."""
        rng = self._rng("corpus tasks")
        tasks: dict[str, list[tuple[str, str]]] = {"translation": [], "passage_qa": []}
        for _ in range(count):
            english, zib = corpus.sample_translation(self.lexicon, rng)
            tasks["translation"].append((f"English: {english}\nZib:", zib))
            text, (question_answer,) = corpus.make_passage_task(self.lexicon, rng)
            question, _, answer = question_answer.partition("\nAnswer:\n")
            tasks["passage_qa"].append((f"{text}{question}\nAnswer:\n", answer))
        return tasks

    def statistics(self) -> Counter[tuple[str, str]]:
        """Count distinct prompts by group and use case."""
        return Counter((task.group, task.content.use_case) for task in self.tasks.values())

    def _rng(self, purpose: str) -> Random:
        return Random(f"world {self.seed} {purpose}")

    def _lookup_condition(self, options: dict[str, _T], condition: str) -> _T:
        if condition not in options:
            raise InputError(f"no condition '{condition}'; there are: {', '.join(options)}")
        return options[condition]
