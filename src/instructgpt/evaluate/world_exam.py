"""The paper's evaluations in the embedded small world, where the truth about every answer is known.

`run_exam` puts all questions to one model and writes its answers; `grade_exams` reads the answers of all models and
measures them. The two are separate so that models can run in parallel and a finished model is not run again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from instructgpt.evaluate.best_of_n_policy import BestOfN
from instructgpt.evaluate.configs import ExamConfig
from instructgpt.evaluate.inference import EvaluatedModel, generate_answers, generate_continuations, text_logps
from instructgpt.evaluate.metrics import (
    bias,
    generalization,
    labels,
    preference,
    refusal,
    simple_mistakes,
    tax,
    toxicity,
    truthfulness,
)
from instructgpt.evaluate.refusal.matcher import match_refusal
from instructgpt.models.policy import pick_device
from instructgpt.records import Completion, Ranking, Record, read_records, write_records
from instructgpt.results import ResultRow
from instructgpt.run.directory import read_jsonl_log
from instructgpt.statistics.intervals import mean
from instructgpt.world import SimulatedLabelers, World
from instructgpt.world.generalization import GENERALIZATION_KINDS
from instructgpt.world.utility import MAX_UTILITY

_TOXICITY_CONDITIONS = ("none", "respectful", "biased")
WITH_LIST = "with_list"
"""Condition of refusals: the list of forbidden uses stands before the prompt."""
_TRUTH_CONDITIONS = ("qa", "instruction")
_EXAM_COHORTS = ("training", "heldout")


class _ExamRecord(Record):
    """One answer: the part of the exam, condition, text, and the model's continuation or log-probability (nats)."""

    part: str
    condition: str = ""
    text: str
    said: str = ""
    finish: str = "stop"
    logp: float = 0.0
    tokens: int = 0


def run_exam(
    name: str,
    folder: Path,
    out: Path,
    world: World,
    exam: ExamConfig,
    seed: int,
    device: str,
    *,
    primed: bool = False,
    choose: BestOfN | None = None,
) -> None:
    """Put the exam to one model and write its answers to `out`. Does nothing if `out` exists.

    `primed` prepends the few-shot prompt (the prompted base model), `choose` makes each answer the best of several.
    Both leave out continuations and log-probabilities of plain text, which they have none of.
    """
    if out.exists():
        return
    model = EvaluatedModel.load(name, folder, pick_device(device), world.few_shot_prompt if primed else None)
    records = _answer_instructions(model, world, exam, seed, choose)
    if not primed and choose is None:  # a few-shot prefix would change the probability of plain text
        records += _score_plain_texts(model, world, exam, seed)
    write_records(out, records)


def _answer_instructions(
    model: EvaluatedModel, world: World, exam: ExamConfig, seed: int, choose: BestOfN | None
) -> list[_ExamRecord]:
    answer_prompts = generate_answers if choose is None else choose.generate_answers
    generate = partial(answer_prompts, model, max_tokens=exam.max_tokens, seed=seed, temperature=exam.temperature)
    records: list[_ExamRecord] = []
    for questions in _collect_prompts(world, exam):
        answers = generate(questions.prompts, per_prompt=questions.per_prompt)
        conditions = [condition for condition in questions.conditions for _ in range(questions.per_prompt)]
        for condition, answer in zip(conditions, answers, strict=True):
            finish = {"finish": answer.finish} if questions.is_judged else {}
            fields = {"part": questions.part, "condition": condition, "text": answer.prompt, "said": answer.completion}
            records.append(_ExamRecord.model_validate(fields | finish))
    return records


@dataclass(frozen=True, slots=True)
class _PromptSet:
    """Prompts of one part of the exam, each with its condition. Judged answers keep how they finished."""

    part: str
    prompts: list[str]
    conditions: list[str]
    per_prompt: int = 1
    is_judged: bool = False


def _collect_prompts(world: World, exam: ExamConfig) -> Iterator[_PromptSet]:
    tests = [prompt.prompt for prompt in world.prompts("test", exam.prompts)]
    yield _PromptSet("preference", tests, [""] * len(tests), exam.samples, is_judged=True)
    for kind in GENERALIZATION_KINDS:
        requests = world.generalization_prompts(kind, exam.generalization_prompts)
        yield _PromptSet("generalization", requests, [kind] * len(requests), exam.samples, is_judged=True)
    for condition in _TRUTH_CONDITIONS:
        questions = [question.prompt for question in world.questions(condition)]
        yield _PromptSet("truthfulness", questions, [condition] * len(questions), exam.truth_samples)
    mistakes = world.mistake_prompts(exam.mistakes)
    yield _PromptSet("simple_mistakes", [x.prompt for x in mistakes], [x.kind for x in mistakes])
    if exam.refusals:
        tasks = world.refusal_prompts(exam.refusals)
        yield _PromptSet("refusal", [x.text for x in tasks], [WITH_LIST if x.is_listed else "" for x in tasks])


def _score_plain_texts(model: EvaluatedModel, world: World, exam: ExamConfig, seed: int) -> list[_ExamRecord]:
    """Return continuations of plain text, and the log-probabilities of sentences and documents."""
    records: list[_ExamRecord] = []
    for condition in _TOXICITY_CONDITIONS:
        prompts = world.toxicity_prompts(exam.toxicity_prompts, condition)
        texts = generate_continuations(model, prompts, max_tokens=exam.max_tokens, seed=seed, temperature=1.0)
        for prompt, text in zip(prompts, texts, strict=True):
            records.append(_ExamRecord(part="toxicity", condition=condition, text=prompt, said=text))
    for task, exercises in world.corpus_tasks(exam.exercises).items():
        answers = generate_continuations(model, [text for text, _ in exercises], max_tokens=exam.max_tokens)
        for (text, reference), answer in zip(exercises, answers, strict=True):
            fields = {"part": "tax", "condition": task, "text": text, "said": answer, "reference": reference}
            records.append(_ExamRecord.model_validate(fields))
    sentences = [sentence for pair in world.pronoun_pairs() for sentence in pair]
    documents = islice(world.documents(100 * exam.documents, heldout=True), exam.documents)
    for part, texts in (("bias", sentences), ("document", [document.text for document in documents])):
        for text, (logp, tokens) in zip(texts, text_logps(model, texts), strict=True):
            records.append(_ExamRecord(part=part, text=text, logp=logp, tokens=tokens))
    return records


def grade_exams(
    answers: Mapping[str, Path], rankings_file: Path, world: World, exam: ExamConfig, seed: int
) -> list[ResultRow]:
    """Have simulated labelers rank the models' answers and return all measurements with intervals.

    Args:
        answers: the file that `run_exam` wrote, by model.
        rankings_file: where the rankings are written.
    """
    records_by_model = {model: read_records(_ExamRecord, file) for model, file in answers.items()}
    answers_by_model = {model: read_ranked_answers(file, model) for model, file in answers.items()}
    rankings = rank_answers(answers_by_model, world, exam, seed)
    write_records(rankings_file, rankings)
    use_cases = read_use_cases(world, exam)
    rows = preference.measure(rankings, use_cases=use_cases) + labels.measure_labels(rankings)
    parts: dict[str, list[tuple[str, _ExamRecord]]] = defaultdict(list)
    for model, records in records_by_model.items():
        for record in records:
            parts[record.part].append((model, record))
    rows += truthfulness.measure_truthfulness(
        [
            truthfulness.JudgedAnswer(
                model=model,
                condition=record.condition,
                question=record.text,
                answer=record.said,
                truthful=world.is_true(record.text, record.said),
                informative=world.is_informative(record.text, record.said),
            )
            for model, record in parts["truthfulness"]
        ]
    )
    rows += simple_mistakes.measure_mistakes(_check_mistakes(parts["simple_mistakes"], world, exam))
    for condition in ("", WITH_LIST):
        of_condition = [(model, record) for model, record in parts["refusal"] if record.condition == condition]
        rows += refusal.measure_refusals(_classify_refusals(of_condition, world), condition) if of_condition else []
    rows += toxicity.measure_toxicity(
        [
            toxicity.Continuation(
                model=model,
                condition=record.condition,
                prompt=str(index),
                completion=record.said,
                toxicity=world.toxicity(record.said),
            )
            for index, (model, record) in _with_prompt_index(parts["toxicity"])
        ]
    )
    rows += bias.measure_bias(
        [
            bias.SentencePair(model=model, first=he.text, second=she.text, logp_first=he.logp, logp_second=she.logp)
            for (model, he), (_, she) in zip(parts["bias"][::2], parts["bias"][1::2], strict=True)
        ]
    )
    graded = [
        _grade(world, model, record) for part in ("preference", "generalization") for model, record in parts[part]
    ]
    return rows + generalization.measure_generalization(graded) + _measure_tax(parts)


def _grade(world: World, model: str, record: _ExamRecord) -> generalization.GradedAnswer:
    judgment = world.judge(record.text, record.said, record.finish)
    return generalization.GradedAnswer(
        model=model,
        condition=record.condition or "test_prompts",
        prompt=record.text,
        follows_instruction=judgment.follows_instruction,
        fully_right=judgment.utility >= MAX_UTILITY - 1e-9,
    )


def _check_mistakes(
    records: Sequence[tuple[str, _ExamRecord]], world: World, exam: ExamConfig
) -> list[simple_mistakes.CheckedAnswer]:
    checks = {(mistake.kind, mistake.prompt): mistake.is_mistake for mistake in world.mistake_prompts(exam.mistakes)}
    return [
        simple_mistakes.CheckedAnswer(
            model=model,
            kind=record.condition,
            prompt=record.text,
            is_mistake=checks[record.condition, record.text](record.said),
        )
        for model, record in records
    ]


def _classify_refusals(records: Sequence[tuple[str, _ExamRecord]], world: World) -> list[refusal.ClassifiedAnswer]:
    """Classify answers by the string matcher, which knows all refusals of this world."""
    return [
        refusal.ClassifiedAnswer(
            model=model,
            prompt=record.text,
            harmful=world.refusals.by_text[record.text].is_harmful,
            refusal=match_refusal(record.said) if any(map(str.isalnum, record.said)) else None,
        )
        for model, record in records
    ]


def _measure_tax(parts: Mapping[str, Sequence[tuple[str, _ExamRecord]]]) -> list[ResultRow]:
    solutions = [
        tax.Solution(
            model=model,
            task=record.condition,
            prompt=record.text,
            completion=record.said,
            references=(str(getattr(record, "reference", "")),),
        )
        for model, record in parts["tax"]
    ]
    losses = [
        tax.DocumentLoss(model=model, document=record.text, loss=-record.logp, tokens=record.tokens)
        for model, record in parts["document"]
    ]
    return tax.measure_tax(solutions, losses)


def read_use_cases(world: World, exam: ExamConfig) -> dict[str, str]:
    """Return the use case of each test prompt."""
    return {prompt.prompt: prompt.use_case or "" for prompt in world.prompts("test", exam.prompts)}


def read_ranked_answers(file: Path, model: str) -> list[Completion]:
    """Return a model's answers to the test prompts, in the order of the exam."""
    return [
        Completion.model_validate({"prompt": r.text, "completion": r.said, "model": model, "finish": r.finish})
        for r in read_records(_ExamRecord, file)
        if r.part == "preference"
    ]


def _with_prompt_index(records: list[tuple[str, _ExamRecord]]) -> list[tuple[int, tuple[str, _ExamRecord]]]:
    """Return records with the index of their prompt, the same for every model and condition."""
    counts: dict[tuple[str, str], int] = defaultdict(int)
    indexed_records = []
    for model, record in records:
        indexed_records.append((counts[model, record.condition], (model, record)))
        counts[model, record.condition] += 1
    return indexed_records


def rank_answers(
    answers_by_model: Mapping[str, Sequence[Completion]], world: World, exam: ExamConfig, seed: int
) -> list[Ranking]:
    """Have both cohorts of simulated labelers rank the models' answers to each test prompt."""
    candidates = [list(row) for row in zip(*answers_by_model.values(), strict=True)]
    rankings: list[Ranking] = []
    for cohort in _EXAM_COHORTS:
        labelers = SimulatedLabelers(world, cohort, per_prompt=exam.labelers, seed=seed + 1)  # type: ignore[arg-type]
        rankings += labelers.rank(candidates)
    return rankings


def compute_overoptimization_curve(model: str, folder: Path, world: World, episodes_per_update: int) -> list[Record]:
    """Return the reward model's mean score and the true utility of each PPO update, from the completions PPO saved."""
    rows_by_step: dict[int, list[dict[str, object]]] = defaultdict(list)
    for row in read_jsonl_log(folder / "samples.jsonl"):
        if row.get("split") != "validation":
            rows_by_step[int(row["step"])].append(row)
    points = []
    for step, rows in sorted(rows_by_step.items()):
        cells = [[str(row[name]) for name in ("prompt", "completion", "finish")] for row in rows]
        utility = mean([world.utility(*values) for values in cells], [values[0] for values in cells])
        means = {name: sum(float(str(row[name])) for row in rows) / len(rows) for name in ("kl", "score")}
        fields = {"model": model, "step": step, "episodes": step * episodes_per_update}
        interval = {"utility": utility.value, "low": utility.low, "high": utility.high}
        points.append(Record.model_validate(fields | interval | means))
    return points
