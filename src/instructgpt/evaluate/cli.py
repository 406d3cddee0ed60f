"""`evaluate`: the paper's automatic evaluations of any models, from local files. What a model said is kept, and never asked twice.

instructgpt evaluate truthfulqa squad --model sft=runs/mine/sft ppo=runs/mine/ppo --data DATA --out results.json
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field
from rich.table import Table

from instructgpt.config import Options, did_you_mean
from instructgpt.distributed.launch import device_kind, dividing
from instructgpt.errors import BadInput, RunFailed
from instructgpt.evaluate.aggregate import Row, write_rows
from instructgpt.evaluate.cache import Cache
from instructgpt.evaluate.datasets import named_sources, source_of
from instructgpt.evaluate.inference import subject_at
from instructgpt.evaluate.judges.truthfulqa_judge import ASKS, judge_folder
from instructgpt.evaluate.lm_harness import Harness
from instructgpt.evaluate.precomputed import files_by_evaluation, measure_samples
from instructgpt.evaluate.preference_inputs import named_models
from instructgpt.evaluate.reward.scores import reward_at
from instructgpt.evaluate.tasks import EVALUATIONS
from instructgpt.evaluate.tasks.base import Evaluation, Question, Reply, Told, said_by
from instructgpt.evaluate.tasks.real_toxicity import scorer_of
from instructgpt.evaluate.tasks.whole import WHOLE
from instructgpt.models.policy import pick_device
from instructgpt.run.directory import console, content_hash

AT_ONCE = 512
"""Questions between two writes of replies: what is lost when the command is stopped."""
DIVIDED = 32
"""The same where processes divide them, so that none has to wait long for the last block of another."""
WIDE = 4
"""Models whose numbers fit beside each other on a terminal."""
Over = Callable[..., Iterable[Any]]
COMPARING = ("judge", "judge_model", "judge_key", "judge_reads", "baseline", "max_tokens", "temperature")
"""Options of the evaluation of preference alone."""


class EvaluateConfig(Options):
    """Which evaluations of which models."""

    stage: ClassVar[str] = "evaluate"

    names: tuple[str, ...] = Field((), description=f"evaluations: {', '.join((*EVALUATIONS, *WHOLE))}; or all that ask questions")
    model: tuple[str, ...] = Field((), description="models, each as NAME=MODEL, or MODEL alone: a directory or a hub name")
    data: tuple[str, ...] = Field(
        (),
        description="the folder with the evaluations' files under their usual names, the one file of one evaluation, or NAME=SOURCE: "
        "a file, a data set saved to disk or one of the hub",
    )
    harness: tuple[str, ...] = Field(
        (), description="tasks of lm-evaluation-harness, beside or in place of the evaluations here; needs instructgpt[harness]"
    )
    include_path: Path | None = Field(None, description="a folder with YAML files of more tasks for --harness")
    completions: tuple[Path, ...] = Field(
        (),
        description="in place of models and data: completions already made, with references: FILE, or NAME=FILE for one evaluation",
    )
    out: Path = Field(Path("results.json"), description="the file of results; what the models said is kept in a folder beside it")
    limit: int | None = Field(
        None, ge=0, description="questions of each evaluation, drawn by the seed; 0 for all; each one's own number where not given"
    )
    shots: int | None = Field(
        None, ge=0, description="examples in front of a question where a task has some; the paper's number where not given"
    )
    scorer: str | None = Field(
        None, description="who scores toxicity: a directory made by 'judge toxicity', detoxify, perspective:URL or moderation:URL"
    )
    judges: Path | None = Field(
        None,
        description="the folder with the judges that 'judge truth' and 'judge info' made (truth, info): truthfulqa then asks for answers",
    )
    judge: str | None = Field(
        None,
        description="who compares completions: a reward model, a language model, an endpoint's address, or 'simulated'; people if none",
    )
    judge_model: str | None = Field(None, description="which model of the endpoint judges")
    judge_key: str | None = Field(None, description="the environment variable that holds the endpoint's key")
    judge_reads: Literal["text", "logp"] | None = Field(
        None, description="where a language model's verdict stands: in its text, or in the log-probabilities of A, B and C"
    )
    baseline: str | None = Field(None, description="the model that others are compared with; sft where there is one")
    max_tokens: int = Field(256, ge=1, description="where a completion that is compared is cut off")
    temperature: float = Field(1.0, ge=0, description="of the completions that are compared")
    seed: int = Field(0, ge=0, lt=2**32, description="draws questions and examples")
    device: str = Field("auto", description="cpu, cuda, cuda:1 …; auto takes a GPU when there is one")
    processes: int = Field(1, ge=1, description="processes that divide what models are asked (CPU)")

    def inert(self) -> Iterator[str]:
        """Either models are asked, or completions are read; what people ranked needs neither."""
        yield from self._inert_comparing()
        if self.include_path and not self.harness:
            yield "--include-path has no effect without --harness"
        if not self.names and not self.harness:
            yield "name an evaluation, or give --harness"
        elif self.names and not self.harness and all(name in WHOLE for name in self.names):
            if not self.completions and not self.data:
                yield "give --data (rankings, or with --model prompts), or --completions"
        elif self.completions:
            for name in ("harness", "model", "data", "limit", "shots", "seed", "processes"):
                if name in self.model_fields_set:
                    yield f"--{name} has no effect with --completions"
        elif not self.model or (not self.data and self.names):
            yield "give --model and --data, or --completions"
        elif not self.names and "processes" in self.model_fields_set:
            yield "--processes has no effect on --harness alone"

    def _inert_comparing(self) -> Iterator[str]:
        for name in COMPARING:
            flag = f"--{name.replace('_', '-')}"
            if name not in self.model_fields_set:
                continue
            if "preference" not in self.names:
                yield f"{flag} has no effect without the evaluation preference"
            elif name in ("max_tokens", "temperature") and not self.model:
                yield f"{flag} has no effect without --model"
            elif name in ("judge_model", "judge_key") and "://" not in (self.judge or ""):
                yield f"{flag} has no effect unless --judge is the address of an endpoint"


def main(config: EvaluateConfig) -> list[Row]:
    """Ask or read, measure, write, show. Every model is loaded once; what is done stands in the file of results at once.

    Raises:
        BadInput: an evaluation is unknown, a file is missing or wrong, or a model does not load.
        RunFailed: a judge could not be reached any more; what it had judged before is measured and written.
    """
    if config.processes > 1 and device_kind(config.device) != "cpu":
        raise BadInput("evaluate: --processes divides the work among the cores of the CPU; leave it out with a GPU, or give --device cpu")
    try:
        with dividing(config.processes) as over:
            return measured(config, over)
    finally:
        leave_models()


def measured(config: EvaluateConfig, over: Over) -> list[Row]:
    """See `main`. `over` calls a function for each of many, as `map` does."""
    rows: list[Row] = []
    stopped: list[str] = []
    for name in dict.fromkeys(config.names):
        if name in WHOLE:
            more, problem = WHOLE[name](config, over)
            rows += more
            stopped += [problem] if problem else []
    whole = len(rows)
    questions = [name for name in config.names if name not in WHOLE]
    asking = bool(questions or config.harness)
    for more in () if not asking else measured_samples(config) if config.completions else measured_models(config, over):
        rows += more
        write_rows(config.out, in_table_order(rows))
    if asking:
        show(in_table_order(rows[whole:]))
    if rows:
        rows = in_table_order(rows)
        write_rows(config.out, rows)
        console.print(f"results: {config.out}", soft_wrap=True)
    if stopped:
        raise RunFailed(stopped[0])
    return rows


def told_by(config: EvaluateConfig) -> Told:
    """What every evaluation is told; each has its own limit."""
    verdicts = config.out.with_suffix("") / "verdicts"
    return Told(None, config.shots, config.seed, config.scorer, config.judges, config.device, verdicts)


def measured_samples(config: EvaluateConfig) -> Iterator[list[Row]]:
    """The rows of one evaluation after the other, from completions that were already made."""
    files = files_by_evaluation([name for name in config.names if name not in WHOLE], list(map(str, config.completions)))
    for name in evaluations(list(files)):
        yield measure_samples(name.name, files[name.name], told_by(config))


def measured_models(config: EvaluateConfig, over: Over) -> Iterator[list[Row]]:
    """The rows of one model and evaluation after the other. All files are read before a model is asked anything.

    Raises:
        BadInput: see `main`.
    """
    told = told_by(config)
    if config.judges:
        for kind in ASKS:
            judge_folder(kind, config.judges)
    places, named = named_sources(config.data)
    questions = read_questions(config, told, places, named) if any(name not in WHOLE for name in config.names) else []
    tasks = Harness(config.harness, config.include_path, named, config.limit or None, config.seed) if config.harness else None
    models = named_models(config.model)
    cache = Cache(config.out.with_suffix(""))
    device = str(pick_device(config.device))
    for name, source in models.items():
        model = Examined(name, source, content_hash(Path(source)), device)
        for one, asked in questions:
            replies = answered(cache, model, one.name, asked, config.seed, over, AT_ONCE if config.processes == 1 else DIVIDED)
            yield one.measure(list(zip(asked, replies, strict=True)), told)
        if tasks is not None:
            yield tasks.measure(name, model.weights, partial(subject_at, source, device), cache)
        leave_models()


def read_questions(
    config: EvaluateConfig, told: Told, places: Sequence[Path], named: dict[str, Path]
) -> list[tuple[Evaluation, list[Question]]]:
    """The questions of every evaluation that was named. Under `all`, an evaluation whose data or scorer is not there is left out, aloud.

    Raises:
        BadInput: one that was named has no data, or its data is wrong.
    """
    chosen, everything = evaluations(config.names), "all" in config.names
    found: list[tuple[Evaluation, list[Question]]] = []
    for one in chosen:
        source = source_of(one, places, named, len(chosen))
        where = ", ".join(map(str, places)) or "any place given"
        lacking = "" if source else f"reads {one.file}, which is not in {where}; give --data FOLDER, or --data {one.name}=FILE"
        if one.name.startswith("real_toxicity"):
            if config.scorer is None and everything:
                lacking = "needs --scorer"
            else:
                scorer_of(one.name, told)  # what is wrong with it is said before models are asked
        if source is None or lacking:
            if not everything:
                raise BadInput(f"evaluate: {one.name} {lacking}")
            console.print(f"left out: {one.name} {lacking.partition(';')[0]}", highlight=False, markup=False, soft_wrap=True)
            continue
        limit = one.limit if config.limit is None else config.limit or None
        try:
            found.append((one, one.read(source, replace(told, limit=limit))))
        except BadInput as error:
            raise BadInput(f"{one.name}: {error}") from error
    if not found:
        raise BadInput("evaluate: there is no data for any evaluation; docs/evaluate.md lists the files")
    return found


def leave_models() -> None:
    """Make room: what this process has loaded is not needed any more."""
    subject_at.cache_clear()
    reward_at.cache_clear()


class Examined(NamedTuple):
    """A model by its name, where it is, the hash of its weights, and the device it is to be loaded to."""

    name: str
    source: str
    weights: str
    device: str


def answered(
    cache: Cache, model: Examined, evaluation: str, questions: Sequence[Question], seed: int, over: Over = map, at_once: int = AT_ONCE
) -> list[Reply]:
    """One model's replies to the questions, asked as far as they are not known, the work divided by `over`.

    Args:
        at_once: questions of temperature 0 between two writes; what is drawn at another one depends on its block, which is `AT_ONCE`.
    """
    said: dict[int, dict[str, Any]] = {}
    alike: dict[tuple[str | None, float, float], list[int]] = {}
    for place, question in enumerate(questions):
        alike.setdefault((question.stop, question.temperature, question.top_p), []).append(place)
    for (stop, temperature, top_p), places in alike.items():
        how = {"stop": stop, "temperature": temperature, "top_p": top_p}
        prompts = [[each.text, each.tail, list(each.choices), each.max_tokens] for each in (questions[place] for place in places)]
        made = cache.completions(
            model.weights,
            prompts,
            how | {"seed": seed},
            partial(said_by, model.source, model.device, how),
            title=f"{evaluation} {model.name}",
            at_once=AT_ONCE if temperature else at_once,
            over=over,
        )
        said |= dict(zip(places, made, strict=True))
    return [
        Reply.model_validate({"model": model.name, "id": question.id, "condition": question.condition} | said[place])
        for place, question in enumerate(questions)
    ]


def in_table_order(rows: Sequence[Row]) -> list[Row]:
    """Rows by evaluation, then by metric and condition, the models in the order they were given."""
    place = {names: number for number, names in enumerate(dict.fromkeys((row.evaluation, row.metric, row.condition) for row in rows))}
    first = {name: number for number, name in enumerate(dict.fromkeys(row.evaluation for row in rows))}
    return sorted(rows, key=lambda row: (first[row.evaluation], place[row.evaluation, row.metric, row.condition]))


def show(rows: Sequence[Row]) -> None:
    """A line for each thing measured, a column for each model; parts of the questions (`none/age`) stand in the file alone."""
    models = list(dict.fromkeys(row.model for row in rows))
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        if "/" not in row.condition:
            interval = "" if row.low is None or row.high is None else f" [{row.low:.3f}, {row.high:.3f}]"
            said = "–" if row.value is None else f"{row.value:.3f}{interval}"
            cells.setdefault((row.evaluation, row.metric, row.condition), {})[row.model] = said
    for some in (models[start : start + WIDE] for start in range(0, len(models), WIDE)):
        table = Table("", *some, box=None, pad_edge=False)
        for names, measured in cells.items():
            table.add_row(" ".join(names), *(measured.get(model, "") for model in some))
        console.print(table)


def evaluations(names: Sequence[str]) -> list[Evaluation]:
    """Evaluations that ask questions, by name. Raises BadInput for one that does not exist."""
    if "all" in names:
        return list(EVALUATIONS.values())
    known = (*EVALUATIONS, *WHOLE)
    for name in names:
        if name not in known:
            raise BadInput(f"evaluate: no evaluation '{name}'{did_you_mean(name, known) or '; there are: ' + ', '.join(known)}")
    return [EVALUATIONS[name] for name in dict.fromkeys(names) if name in EVALUATIONS]
