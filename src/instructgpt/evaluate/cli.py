"""The `evaluate` command: run the paper's automatic evaluations on any models, from local files, with cached replies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field
from rich.table import Table

from instructgpt.config import CommandConfig, did_you_mean
from instructgpt.distributed.launch import device_type, process_map
from instructgpt.errors import InputError, RunError
from instructgpt.evaluate.cache import ResultCache
from instructgpt.evaluate.datasets import find_data_source, parse_data_sources
from instructgpt.evaluate.inference import load_cached_model
from instructgpt.evaluate.judges.truthfulqa_judge import JUDGE_QUESTIONS, find_judge_folder
from instructgpt.evaluate.lm_harness import LMHarness
from instructgpt.evaluate.precomputed import measure_precomputed, resolve_completion_files
from instructgpt.evaluate.preference_inputs import parse_named_models
from instructgpt.evaluate.reward.scores import load_cached_reward_model
from instructgpt.evaluate.tasks import EVAL_TASKS
from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, EvalTask, ModelReply, generate_reply_fields
from instructgpt.evaluate.tasks.real_toxicity import require_scorer
from instructgpt.evaluate.tasks.whole import CONFIG_EVALUATIONS
from instructgpt.models.policy import pick_device
from instructgpt.results import ResultRow, write_result_rows
from instructgpt.run.directory import console, content_hash

REPLY_CHUNK_SIZE = 512
"""Questions between two cache writes: what a killed command loses."""
PARALLEL_CHUNK_SIZE = 32
"""Questions per block when processes share the work; small, so that no process waits long for another's last block."""
_MODELS_PER_TABLE = 4
_MapFn = Callable[..., Iterable[Any]]
_PREFERENCE_OPTIONS = ("judge", "judge_model", "judge_key", "judge_reads", "baseline", "max_tokens", "temperature")
"""Options that only the preference evaluation reads."""


class EvaluateConfig(CommandConfig):
    """Evaluations, the models they run on, and where the data is."""

    stage: ClassVar[str] = "evaluate"

    names: tuple[str, ...] = Field(
        (), description=f"evaluations: {', '.join((*EVAL_TASKS, *CONFIG_EVALUATIONS))}; or all that ask questions"
    )
    model: tuple[str, ...] = Field(
        (), description="models, each as NAME=MODEL, or MODEL alone: a directory or a hub name"
    )
    data: tuple[str, ...] = Field(
        (),
        description="the folder with the evaluations' files under their usual names, the one file of one evaluation, or NAME=SOURCE: "
        "a file, a data set saved to disk or one of the hub",
    )
    harness: tuple[str, ...] = Field(
        (),
        description="tasks of lm-evaluation-harness, beside or in place of the evaluations here; needs instructgpt[harness]",
    )
    include_path: Path | None = Field(None, description="a folder with YAML files of more tasks for --harness")
    completions: tuple[Path, ...] = Field(
        (),
        description="in place of models and data: completions already made, with references: FILE, or NAME=FILE for one evaluation",
    )
    out: Path = Field(
        Path("results.json"), description="the file of results; what the models said is kept in a folder beside it"
    )
    limit: int | None = Field(
        None,
        ge=0,
        description="questions of each evaluation, drawn by the seed; 0 for all; each one's own number where not given",
    )
    shots: int | None = Field(
        None,
        ge=0,
        description="examples in front of a question where a task has some; the paper's number where not given",
    )
    scorer: str | None = Field(
        None,
        description="who scores toxicity: a directory made by 'judge toxicity', detoxify, perspective:URL or moderation:URL",
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
        None,
        description="where a language model's verdict stands: in its text, or in the log-probabilities of A, B and C",
    )
    baseline: str | None = Field(None, description="the model that others are compared with; sft where there is one")
    max_tokens: int = Field(256, ge=1, description="where a completion that is compared is cut off")
    temperature: float = Field(1.0, ge=0, description="of the completions that are compared")
    seed: int = Field(0, ge=0, lt=2**32, description="draws questions and examples")
    device: str = Field("auto", description="cpu, cuda, cuda:1 …; auto takes a GPU when there is one")
    processes: int = Field(1, ge=1, description="processes that divide what models are asked (CPU)")

    def ineffective_options(self) -> Iterator[str]:
        """Yield what is missing or has no effect. Tasks need models or completions; rankings by people need neither."""
        yield from self._ineffective_preference_options()
        if self.include_path and not self.harness:
            yield "--include-path has no effect without --harness"
        if not self.names and not self.harness:
            yield "name an evaluation, or give --harness"
        elif self.names and not self.harness and all(name in CONFIG_EVALUATIONS for name in self.names):
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

    def _ineffective_preference_options(self) -> Iterator[str]:
        for name in _PREFERENCE_OPTIONS:
            flag = f"--{name.replace('_', '-')}"
            if name not in self.model_fields_set:
                continue
            if "preference" not in self.names:
                yield f"{flag} has no effect without the evaluation preference"
            elif name in ("max_tokens", "temperature") and not self.model:
                yield f"{flag} has no effect without --model"
            elif name in ("judge_model", "judge_key") and "://" not in (self.judge or ""):
                yield f"{flag} has no effect unless --judge is the address of an endpoint"


def main(config: EvaluateConfig) -> list[ResultRow]:
    """Run every evaluation and write the results after each.

    Raises:
        InputError: an evaluation is unknown, a file is missing or wrong, or a model does not load.
        RunError: a judge became unavailable; what it judged before is measured and written.
    """
    if config.processes > 1 and device_type(config.device) != "cpu":
        raise InputError(
            "evaluate: --processes divides the work among the cores of the CPU; leave it out with a GPU, or give --device cpu"
        )
    try:
        with process_map(config.processes) as map_fn:
            return _run_evaluations(config, map_fn)
    finally:
        _unload_models()


def _run_evaluations(config: EvaluateConfig, map_fn: _MapFn) -> list[ResultRow]:
    rows: list[ResultRow] = []
    problems: list[str] = []
    for name in dict.fromkeys(config.names):
        if name in CONFIG_EVALUATIONS:
            new_rows, problem = CONFIG_EVALUATIONS[name](config, map_fn)
            rows += new_rows
            problems += [problem] if problem else []
    printed_count = len(rows)
    task_names = [name for name in config.names if name not in CONFIG_EVALUATIONS]
    has_tasks = bool(task_names or config.harness)
    for new_rows in (
        ()
        if not has_tasks
        else _evaluate_precomputed(config)
        if config.completions
        else _evaluate_models(config, map_fn)
    ):
        rows += new_rows
        write_result_rows(config.out, _sort_rows(rows))
    if has_tasks:
        _print_results_table(_sort_rows(rows[printed_count:]))
    if rows:
        rows = _sort_rows(rows)
        write_result_rows(config.out, rows)
        console.print(f"results: {config.out}", soft_wrap=True)
    if problems:
        raise RunError(problems[0])
    return rows


def _build_eval_settings(config: EvaluateConfig) -> EvalSettings:
    verdict_folder = config.out.with_suffix("") / "verdicts"
    return EvalSettings(None, config.shots, config.seed, config.scorer, config.judges, config.device, verdict_folder)


def _evaluate_precomputed(config: EvaluateConfig) -> Iterator[list[ResultRow]]:
    files = resolve_completion_files(
        [task for task in config.names if task not in CONFIG_EVALUATIONS], list(map(str, config.completions))
    )
    for task in select_eval_tasks(list(files)):
        yield measure_precomputed(task.name, files[task.name], _build_eval_settings(config))


def _evaluate_models(config: EvaluateConfig, map_fn: _MapFn) -> Iterator[list[ResultRow]]:
    """Yield the rows of each model and evaluation. All files are read before the first model is loaded."""
    settings = _build_eval_settings(config)
    if config.judges:
        for kind in JUDGE_QUESTIONS:
            find_judge_folder(kind, config.judges)
    data_paths, named_paths = parse_data_sources(config.data)
    task_questions = (
        _load_questions(config, settings, data_paths, named_paths)
        if any(name not in CONFIG_EVALUATIONS for name in config.names)
        else []
    )
    harness = (
        LMHarness(config.harness, config.include_path, named_paths, config.limit or None, config.seed)
        if config.harness
        else None
    )
    models = parse_named_models(config.model)
    cache = ResultCache(config.out.with_suffix(""))
    device = str(pick_device(config.device))
    for name, source in models.items():
        model_source = _ModelSource(name, source, content_hash(Path(source)), device)
        for task, eval_questions in task_questions:
            replies = _get_replies(
                cache,
                model_source,
                task.name,
                eval_questions,
                config.seed,
                map_fn,
                REPLY_CHUNK_SIZE if config.processes == 1 else PARALLEL_CHUNK_SIZE,
            )
            yield task.measure(list(zip(eval_questions, replies, strict=True)), settings)
        if harness is not None:
            yield harness.measure(name, model_source.weights_hash, partial(load_cached_model, source, device), cache)
        _unload_models()


def _load_questions(
    config: EvaluateConfig, settings: EvalSettings, data_paths: Sequence[Path], named_paths: dict[str, Path]
) -> list[tuple[EvalTask, list[EvalQuestion]]]:
    """Load the questions of every selected task. Under `all`, a task without data or scorer is skipped with a message."""
    tasks, all_requested = select_eval_tasks(config.names), "all" in config.names
    task_questions: list[tuple[EvalTask, list[EvalQuestion]]] = []
    for task in tasks:
        source = find_data_source(task, data_paths, named_paths, len(tasks))
        searched_paths = ", ".join(map(str, data_paths)) or "any place given"
        problem = (
            ""
            if source
            else f"reads {task.default_file}, which is not in {searched_paths}; give --data FOLDER, or --data {task.name}=FILE"
        )
        if task.name.startswith("real_toxicity"):
            if config.scorer is None and all_requested:
                problem = "needs --scorer"
            else:
                require_scorer(task.name, settings)  # what is wrong with it is said before models are asked
        if source is None or problem:
            if not all_requested:
                raise InputError(f"evaluate: {task.name} {problem}")
            console.print(
                f"left out: {task.name} {problem.partition(';')[0]}", highlight=False, markup=False, soft_wrap=True
            )
            continue
        limit = task.limit if config.limit is None else config.limit or None
        try:
            task_questions.append((task, task.load(source, replace(settings, limit=limit))))
        except InputError as error:
            raise InputError(f"{task.name}: {error}") from error
    if not task_questions:
        raise InputError("evaluate: there is no data for any evaluation; docs/evaluate.md lists the files")
    return task_questions


def _unload_models() -> None:
    """Free the memory of the models that this process has loaded."""
    load_cached_model.cache_clear()
    load_cached_reward_model.cache_clear()


class _ModelSource(NamedTuple):
    """A model's name, its directory or hub name, the hash of its weights, and the device to load it on."""

    name: str
    source: str
    weights_hash: str
    device: str


def _get_replies(
    cache: ResultCache,
    model_source: _ModelSource,
    task_name: str,
    questions: Sequence[EvalQuestion],
    seed: int,
    map_fn: _MapFn = map,
    chunk_size: int = REPLY_CHUNK_SIZE,
) -> list[ModelReply]:
    """Return one model's replies to the questions, computing only those that the cache lacks.

    Args:
        chunk_size: questions between two writes at temperature 0. Samples depend on their block, which is always `REPLY_CHUNK_SIZE`.
    """
    reply_values: dict[int, dict[str, Any]] = {}
    groups: dict[tuple[str | None, float, float], list[int]] = {}
    for index, question in enumerate(questions):
        groups.setdefault((question.stop, question.temperature, question.top_p), []).append(index)
    for (stop, temperature, top_p), indices in groups.items():
        sampling = {"stop": stop, "temperature": temperature, "top_p": top_p}
        prompts = [
            [each.text, each.tail, list(each.choices), each.max_tokens]
            for each in (questions[index] for index in indices)
        ]
        values = cache.get_or_compute(
            model_source.weights_hash,
            prompts,
            sampling | {"seed": seed},
            partial(generate_reply_fields, model_source.source, model_source.device, sampling),
            title=f"{task_name} {model_source.name}",
            chunk_size=REPLY_CHUNK_SIZE if temperature else chunk_size,
            map_fn=map_fn,
        )
        reply_values |= dict(zip(indices, values, strict=True))
    return [
        ModelReply.model_validate(
            {"model": model_source.name, "id": question.id, "condition": question.condition} | reply_values[index]
        )
        for index, question in enumerate(questions)
    ]


def _sort_rows(rows: Sequence[ResultRow]) -> list[ResultRow]:
    row_order = {
        names: number
        for number, names in enumerate(dict.fromkeys((row.evaluation, row.metric, row.condition) for row in rows))
    }
    evaluation_order = {name: number for number, name in enumerate(dict.fromkeys(row.evaluation for row in rows))}
    return sorted(
        rows, key=lambda row: (evaluation_order[row.evaluation], row_order[row.evaluation, row.metric, row.condition])
    )


def _print_results_table(rows: Sequence[ResultRow]) -> None:
    """Print a line per metric and a column per model; conditions with a part (`none/age`) are only in the file."""
    models = list(dict.fromkeys(row.model for row in rows))
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        if "/" not in row.condition:
            interval = "" if row.low is None or row.high is None else f" [{row.low:.3f}, {row.high:.3f}]"
            text = "–" if row.value is None else f"{row.value:.3f}{interval}"
            cells.setdefault((row.evaluation, row.metric, row.condition), {})[row.model] = text
    for table_models in (
        models[start : start + _MODELS_PER_TABLE] for start in range(0, len(models), _MODELS_PER_TABLE)
    ):
        table = Table("", *table_models, box=None, pad_edge=False)
        for row_key, values in cells.items():
            table.add_row(" ".join(row_key), *(values.get(model, "") for model in table_models))
        console.print(table)


def select_eval_tasks(names: Sequence[str]) -> list[EvalTask]:
    """Return the tasks of these names. Raise InputError for an unknown evaluation."""
    if "all" in names:
        return list(EVAL_TASKS.values())
    available = (*EVAL_TASKS, *CONFIG_EVALUATIONS)
    for name in names:
        if name not in available:
            raise InputError(
                f"evaluate: no evaluation '{name}'{did_you_mean(name, available) or '; there are: ' + ', '.join(available)}"
            )
    return [EVAL_TASKS[name] for name in dict.fromkeys(names) if name in EVAL_TASKS]
