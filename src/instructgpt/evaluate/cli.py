"""The `evaluate` command: run the paper's automatic evaluations on any models, with cached replies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from instructgpt.config import did_you_mean
from instructgpt.distributed.launch import device_type, process_map
from instructgpt.errors import InputError, RunError
from instructgpt.evaluate.cache import ResultCache
from instructgpt.evaluate.comparison_settings import ComparisonSettings, PreferenceSettings
from instructgpt.evaluate.configs import WHOLE_FILE_EVALUATIONS, EvaluateConfig
from instructgpt.evaluate.datasets import find_data_source, parse_data_sources
from instructgpt.evaluate.inference import load_cached_model
from instructgpt.evaluate.judges.truthfulqa_judge import JUDGE_QUESTIONS, find_judge_folder
from instructgpt.evaluate.lm_harness import LMHarness
from instructgpt.evaluate.metrics.refusal import REFUSAL_EVALUATION
from instructgpt.evaluate.output import add_result_rows, cache_folder, resolve_results_path, row_key, sort_rows
from instructgpt.evaluate.precomputed import measure_precomputed, resolve_completion_files
from instructgpt.evaluate.preference_run import run_preference_evaluation
from instructgpt.evaluate.reward.run import run_reward_model_evaluation
from instructgpt.evaluate.reward.scores import load_cached_reward_model
from instructgpt.evaluate.tasks import EVAL_TASKS
from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, EvalTask, ModelReply, generate_reply_fields
from instructgpt.evaluate.tasks.real_toxicity import require_scorer
from instructgpt.evaluate.tasks.refusal import require_detector
from instructgpt.models.loading import parse_named_models
from instructgpt.models.policy import pick_device
from instructgpt.results import ResultRow
from instructgpt.run.directory import console, content_hash

REPLY_CHUNK_SIZE = 512
"""Questions between two cache writes: what a killed command loses."""
PARALLEL_CHUNK_SIZE = 32
"""Questions per block when processes share the work; small, so that no process waits long for another's last block."""
_MODELS_PER_TABLE = 4
_MapFn = Callable[..., Iterable[Any]]


def main(config: EvaluateConfig) -> list[ResultRow]:
    """Run every evaluation and write the results after each.

    Raises:
        InputError: an evaluation is unknown, a file is missing or wrong, or a model does not load.
        RunError: a judge became unavailable; what it judged before is measured and written.
    """
    if config.processes > 1 and device_type(config.device) != "cpu":
        raise InputError("evaluate: --processes is for CPUs; leave it out with a GPU, or give --device cpu")
    out = resolve_results_path(config.out, list(parse_named_models(config.model).values()))
    try:
        with process_map(config.processes) as map_fn:
            return _run_evaluations(config, out, map_fn)
    finally:
        _unload_models()


def _run_evaluations(config: EvaluateConfig, out: Path, map_fn: _MapFn) -> list[ResultRow]:
    rows: list[ResultRow] = []
    problems: list[str] = []
    num_kept = 0
    for name in dict.fromkeys(config.names):
        if name in WHOLE_FILE_EVALUATIONS:
            new_rows, problem = _evaluate_whole_files(name, config, cache_folder(out) / name, map_fn)
            rows += new_rows
            problems += [problem] if problem else []
    printed_count = len(rows)
    if config.harness or any(name not in WHOLE_FILE_EVALUATIONS for name in config.names):
        settings = _build_eval_settings(config, cache_folder(out))
        parts = (
            _evaluate_precomputed(config, settings)
            if config.completions
            else _evaluate_models(config, settings, cache_folder(out), map_fn)
        )
        for new_rows in parts:
            rows += new_rows
            add_result_rows(out, rows)
        _print_results_table(sort_rows(rows[printed_count:]))
    if rows:
        num_kept = add_result_rows(out, rows)
        note = f" (beside {num_kept} rows of earlier commands)" if num_kept else ""
        console.print(f"results: {out}{note}", highlight=False, markup=False, soft_wrap=True)
    if problems:
        raise RunError(problems[0])
    return sort_rows(rows)


def _evaluate_whole_files(
    name: str, config: EvaluateConfig, folder: Path, map_fn: _MapFn
) -> tuple[list[ResultRow], str | None]:
    """Return the rows, and why a judge stopped early, if it did."""

    def options(settings_class: type[ComparisonSettings]) -> dict[str, Any]:
        names = EvaluateConfig.model_fields.keys() & {field.name for field in fields(settings_class)}
        return {"folder": folder} | {name: getattr(config, name) for name in names}

    if name == "preference":
        return run_preference_evaluation(PreferenceSettings(**options(PreferenceSettings), sampling=config), map_fn)
    return run_reward_model_evaluation(ComparisonSettings(**options(ComparisonSettings)), map_fn), None


def _build_eval_settings(config: EvaluateConfig, folder: Path) -> EvalSettings:
    return EvalSettings(
        shots=config.shots,
        seed=config.seed,
        scorer=config.scorer,
        detector=config.detector,
        judges_dir=config.judges,
        device=config.device,
        verdict_cache_dir=folder / "verdicts",
        skip_bad=config.skip_bad,
    )


def _evaluate_precomputed(config: EvaluateConfig, settings: EvalSettings) -> Iterator[list[ResultRow]]:
    names = [name for name in config.names if name not in WHOLE_FILE_EVALUATIONS]
    files = resolve_completion_files(names, list(map(str, config.completions)))
    for task in _select_tasks(list(files)):
        yield measure_precomputed(task.name, files[task.name], settings)


def _evaluate_models(
    config: EvaluateConfig, settings: EvalSettings, folder: Path, map_fn: _MapFn
) -> Iterator[list[ResultRow]]:
    """Yield the rows of each model and evaluation. All files are read before the first model is loaded."""
    for kind in JUDGE_QUESTIONS if config.judges else ():
        find_judge_folder(kind, config.judges or Path())
    paths, named_paths = parse_data_sources(config.data)
    _check_source_names(named_paths, config)
    has_tasks = any(name not in WHOLE_FILE_EVALUATIONS for name in config.names)
    task_questions = _load_questions(config, settings, paths, named_paths) if has_tasks else []
    harness = None
    if config.harness:
        harness = LMHarness(config.harness, config.include_path, named_paths, config.limit or None, config.seed)
    models = parse_named_models(config.model)
    cache, device = ResultCache(folder), str(pick_device(config.device))
    chunk_size = REPLY_CHUNK_SIZE if config.processes == 1 else PARALLEL_CHUNK_SIZE
    for name, source in models.items():
        model = _ModelSource(name, source, content_hash(Path(source)), device)
        for task, questions in task_questions:
            replies = _get_replies(cache, model, task.name, questions, config.seed, map_fn, chunk_size)
            yield task.measure(list(zip(questions, replies, strict=True)), settings)
        if harness is not None:
            yield harness.measure(name, model.weights_hash, partial(load_cached_model, source, device), cache)
        _unload_models()


def _load_questions(
    config: EvaluateConfig, settings: EvalSettings, paths: Sequence[Path], named_paths: dict[str, Path]
) -> list[tuple[EvalTask, list[EvalQuestion]]]:
    """Load the questions of the selected tasks. Under `all`, tasks without data or scorer are skipped and reported."""
    tasks, all_requested = _select_tasks(config.names), "all" in config.names
    task_questions: list[tuple[EvalTask, list[EvalQuestion]]] = []
    for task in tasks:
        source, problem = find_data_source(task, paths, named_paths, len(tasks)), ""
        if source is None:
            places = ", ".join(map(str, paths)) or "--data"
            problem = f"needs {task.default_file}, not found in {places}; give --data FOLDER or {task.name}=FILE"
        if task.name.startswith("real_toxicity"):
            if config.scorer is None and all_requested:
                problem = "needs --scorer"
            else:
                require_scorer(task.name, settings)  # a bad scorer is an error before any model runs
        if task.name == REFUSAL_EVALUATION:
            if config.detector is None and all_requested:
                problem = "needs --detector"
            else:
                require_detector(settings)
        if source is None or problem:
            if not all_requested:
                raise InputError(f"evaluate: {task.name} {problem}")
            message = f"skipped: {task.name} {problem.partition(';')[0]}"
            console.print(message, highlight=False, markup=False, soft_wrap=True)
            continue
        limit = task.limit if config.limit is None else config.limit or None
        try:
            task_questions.append((task, task.load(source, replace(settings, limit=limit))))
        except InputError as error:
            raise InputError(f"{task.name}: {error}") from error
    if not task_questions:
        raise InputError("evaluate: no data for any evaluation; docs/reference/evaluate.md lists the files")
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
    model: _ModelSource,
    task_name: str,
    questions: Sequence[EvalQuestion],
    seed: int,
    map_fn: _MapFn = map,
    chunk_size: int = REPLY_CHUNK_SIZE,
) -> list[ModelReply]:
    """Return one model's replies to the questions, computing only those that the cache lacks."""
    reply_values: dict[int, dict[str, Any]] = {}
    groups: dict[tuple[str | None, float, float, bool], list[int]] = {}
    for index, question in enumerate(questions):
        key = (question.stop, question.temperature, question.top_p, question.is_prompt)
        groups.setdefault(key, []).append(index)
    for (stop, temperature, top_p, is_prompt), indices in groups.items():
        sampling: dict[str, Any] = {"stop": stop, "temperature": temperature, "top_p": top_p}
        sampling |= {"is_prompt": True} if is_prompt else {}  # replies cached before there were prompts stay valid
        values = cache.get_or_compute(
            model.weights_hash,
            [[q.text, q.tail, list(q.choices), q.max_tokens] for q in (questions[index] for index in indices)],
            sampling | {"seed": seed},
            partial(generate_reply_fields, model.source, model.device, sampling),
            title=f"{task_name} {model.name}",
            # samples depend on their block, so its size must not depend on the number of processes
            chunk_size=REPLY_CHUNK_SIZE if temperature else chunk_size,
            map_fn=map_fn,
        )
        reply_values |= dict(zip(indices, values, strict=True))
    return [
        ModelReply(model=model.name, id=question.id, condition=question.condition, **reply_values[index])
        for index, question in enumerate(questions)
    ]


def _print_results_table(rows: Sequence[ResultRow]) -> None:
    """Print a line per metric and a column per model; conditions with a part (`none/age`) are only in the file."""
    models = list(dict.fromkeys(row.model for row in rows))
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        if "/" not in row.condition:
            interval = "" if row.low is None or row.high is None else f" [{row.low:.3f}, {row.high:.3f}]"
            text = "–" if row.value is None else f"{row.value:.3f}{interval}"
            cells.setdefault(row_key(row), {})[row.model] = text
    for start in range(0, len(models), _MODELS_PER_TABLE):
        table_models = models[start : start + _MODELS_PER_TABLE]
        table = Table("", *table_models, box=None, pad_edge=False)
        for key, values in cells.items():
            table.add_row(" ".join(key), *(values.get(model, "") for model in table_models))
        console.print(table)


def _check_source_names(named_paths: dict[str, Path], config: EvaluateConfig) -> None:
    """Raise InputError if a NAME=SOURCE of --data belongs to nothing that was requested."""
    requested = [*config.names, *config.harness, *(EVAL_TASKS if "all" in config.names else ())]
    for name, source in named_paths.items():
        if name not in requested:
            hint = did_you_mean(name, requested) or f"; requested: {', '.join(requested)}"
            raise InputError(f"evaluate: --data {name}={source}: {name} is not among the requested evaluations{hint}")


def _select_tasks(names: Sequence[str]) -> list[EvalTask]:
    """Return the tasks of these names. Raise InputError for an unknown evaluation."""
    if "all" in names:
        return list(EVAL_TASKS.values())
    available = (*EVAL_TASKS, *WHOLE_FILE_EVALUATIONS)
    for name in names:
        if name not in available:
            hint = did_you_mean(name, available) or f"; available: {', '.join(available)}"
            raise InputError(f"evaluate: no evaluation '{name}'{hint}")
    return [EVAL_TASKS[name] for name in dict.fromkeys(names) if name in EVAL_TASKS]
