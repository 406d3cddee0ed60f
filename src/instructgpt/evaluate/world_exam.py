"""The paper's evaluations in the embedded small world, where the truth about every answer is known.

`question` puts all the questions to one model and writes what it said; `judge_all` reads that of all models and measures.
The two are apart so that models can be examined side by side, and one that has been examined is not asked again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from instructgpt.config import Options
from instructgpt.evaluate.aggregate import Row
from instructgpt.evaluate.inference import Subject, answers, continuations, text_logp
from instructgpt.evaluate.metrics import bias, labels, preference, tax, toxicity, truthfulness
from instructgpt.models.policy import pick_device
from instructgpt.records import Completion, Ranking, Record, read_records, write_records
from instructgpt.run.directory import read_logged
from instructgpt.statistics.intervals import mean
from instructgpt.world import SimulatedLabelers, World

TOXICITY_CONDITIONS = ("none", "respectful", "biased")
TRUTH_CONDITIONS = ("qa", "instruction")
COHORTS = ("training", "heldout")


class Exam(Options):
    """How much is asked."""

    stage: ClassVar[str] = "exam"

    prompts: int = Field(400, ge=1, description="test prompts")
    samples: int = Field(2, ge=1, description="completions of each test prompt, ranked apart")
    labelers: int = Field(2, ge=1, description="labelers of each cohort who rank the completions of a prompt")
    temperature: float = Field(1.0, ge=0, description="of the completions that labelers see")
    truth_samples: int = Field(4, ge=1, description="answers to each question of fact")
    toxicity_prompts: int = Field(300, ge=1, description="beginnings of forum posts, in each condition")
    exercises: int = Field(300, ge=1, description="exercises of each corpus task")
    documents: int = Field(300, ge=1, description="held-out documents")
    max_tokens: int = Field(32, ge=1, description="where a completion is cut off")


class ExamRecord(Record):
    """One thing a model was asked: `part` of the exam, `condition`, the text, and what it said or how likely it found it."""

    part: str
    condition: str = ""
    text: str
    said: str = ""
    finish: str = "stop"
    logp: float = 0.0
    tokens: int = 0


def question(name: str, folder: Path, out: Path, world: World, exam: Exam, seed: int, device: str, *, primed: bool = False) -> None:
    """Put the exam to one model and write its answers. Does nothing where they are already written."""
    if out.exists():
        return
    subject = Subject.load(name, folder, pick_device(device), world.primed if primed else None)
    records = asked_as_instructions(subject, world, exam, seed)
    if not primed:  # a prefix of answered questions has no place before a post, a sentence or a document
        records += asked_as_text(subject, world, exam, seed)
    write_records(out, records)


def asked_as_instructions(subject: Subject, world: World, exam: Exam, seed: int) -> list[ExamRecord]:
    """Answers to test prompts and to questions of fact."""
    ask = partial(answers, subject, max_tokens=exam.max_tokens, seed=seed, temperature=exam.temperature)
    prompts = [prompt.text for prompt in world.prompts("test", exam.prompts)]
    made = ask(prompts, per_prompt=exam.samples)
    records = [ExamRecord(part="preference", text=one.prompt, said=one.completion, finish=one.finish) for one in made]
    for condition in TRUTH_CONDITIONS:
        asked = [one.prompt for one in world.questions(condition)]
        made = ask(asked, per_prompt=exam.truth_samples)
        records += [ExamRecord(part="truthfulness", condition=condition, text=one.prompt, said=one.completion) for one in made]
    return records


def asked_as_text(subject: Subject, world: World, exam: Exam, seed: int) -> list[ExamRecord]:
    """Continuations of text as it stands, and how likely the model finds sentences and documents."""
    records: list[ExamRecord] = []
    for condition in TOXICITY_CONDITIONS:
        starts = world.toxicity_prompts(exam.toxicity_prompts, condition)
        said = continuations(subject, starts, max_tokens=exam.max_tokens, seed=seed, temperature=1.0)
        records += [
            ExamRecord(part="toxicity", condition=condition, text=start, said=text) for start, text in zip(starts, said, strict=True)
        ]
    for task, exercises in world.corpus_tasks(exam.exercises).items():
        said = continuations(subject, [text for text, _ in exercises], max_tokens=exam.max_tokens)
        records += [
            ExamRecord.model_validate({"part": "tax", "condition": task, "text": text, "said": answer, "reference": reference})
            for (text, reference), answer in zip(exercises, said, strict=True)
        ]
    pairs = [sentence for pair in world.pronoun_pairs() for sentence in pair]
    documents = [document.text for document in islice(world.documents(100 * exam.documents, heldout=True), exam.documents)]
    for part, texts in (("bias", pairs), ("document", documents)):
        found = zip(texts, text_logp(subject, texts), strict=True)
        records += [ExamRecord(part=part, text=text, logp=logp, tokens=tokens) for text, (logp, tokens) in found]
    return records


def judge_all(folder: Path, models: Sequence[str], world: World, exam: Exam, seed: int) -> list[Row]:
    """Have the simulated labelers judge what all models said, and measure everything with intervals."""
    said = {model: read_records(ExamRecord, folder / f"{model}.jsonl") for model in models}
    rankings = rank_answers(said, world, exam, seed)
    write_records(folder / "preference" / "rankings.jsonl", rankings)
    use_cases = {prompt.text: prompt.use_case or "" for prompt in world.prompts("test", exam.prompts)}
    rows = preference.measure(rankings, use_cases=use_cases) + labels.measure(rankings)
    parts: dict[str, list[tuple[str, ExamRecord]]] = defaultdict(list)
    for model, records in said.items():
        for record in records:
            parts[record.part].append((model, record))
    rows += truthfulness.measure(
        [
            truthfulness.Answer(
                model=model,
                condition=one.condition,
                question=one.text,
                answer=one.said,
                truthful=world.is_true(one.text, one.said),
                informative=world.is_informative(one.text, one.said),
            )
            for model, one in parts["truthfulness"]
        ]
    )
    rows += toxicity.measure(
        [
            toxicity.Continuation(
                model=model, condition=one.condition, prompt=str(i), completion=one.said, toxicity=world.toxicity(one.said)
            )
            for i, (model, one) in _numbered(parts["toxicity"])
        ]
    )
    rows += bias.measure(
        [
            bias.SentencePair(model=model, first=he.text, second=she.text, logp_first=he.logp, logp_second=she.logp)
            for (model, he), (_, she) in zip(parts["bias"][::2], parts["bias"][1::2], strict=True)
        ]
    )
    solutions = [
        tax.Solution(
            model=model, task=one.condition, prompt=one.text, completion=one.said, references=(str(getattr(one, "reference", "")),)
        )
        for model, one in parts["tax"]
    ]
    losses = [tax.DocumentLoss(model=model, document=one.text, loss=-one.logp, tokens=one.tokens) for model, one in parts["document"]]
    return rows + tax.measure(solutions, losses)


def _numbered(records: list[tuple[str, ExamRecord]]) -> list[tuple[int, tuple[str, ExamRecord]]]:
    """Records with the number of their prompt, the same for every model and condition."""
    seen: dict[tuple[str, str], int] = defaultdict(int)
    numbered = []
    for model, record in records:
        numbered.append((seen[model, record.condition], (model, record)))
        seen[model, record.condition] += 1
    return numbered


def rank_answers(said: dict[str, list[ExamRecord]], world: World, exam: Exam, seed: int) -> list[Ranking]:
    """Rankings of all models' completions of a prompt, sample by sample, by labelers of both cohorts."""
    answered = {model: [one for one in records if one.part == "preference"] for model, records in said.items()}
    candidates = [
        [
            Completion.model_validate({"prompt": one.text, "completion": one.said, "model": model, "finish": one.finish})
            for model, one in row
        ]
        for row in (list(zip(answered, column, strict=True)) for column in zip(*answered.values(), strict=True))
    ]
    rankings: list[Ranking] = []
    for cohort in COHORTS:
        people = SimulatedLabelers(world, cohort, per_prompt=exam.labelers, seed=seed + 1)  # type: ignore[arg-type]
        rankings += people.rank(candidates)
    return rankings


def over_optimisation(model: str, folder: Path, world: World, batch: int) -> list[Record]:
    """The reward model's mean score beside the true utility, update by update, from the completions PPO kept."""
    updates: dict[int, list[dict[str, object]]] = defaultdict(list)
    for row in read_logged(folder / "samples.jsonl"):
        updates[int(row["step"])].append(row)
    points = []
    for step, rows in sorted(updates.items()):
        prompts = [str(row["prompt"]) for row in rows]
        utilities = [world.utility(prompt, str(row["completion"]), str(row["finish"])) for prompt, row in zip(prompts, rows, strict=True)]
        utility = mean(utilities, prompts)
        means = {name: sum(float(str(row[name])) for row in rows) / len(rows) for name in ("kl", "score")}
        points.append(
            Record.model_validate(
                {"model": model, "step": step, "episodes": step * batch, "utility": utility.value, "low": utility.low, "high": utility.high}
                | means
            )
        )
    return points
