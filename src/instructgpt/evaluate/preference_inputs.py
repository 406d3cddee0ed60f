"""Inputs of the preference evaluation: rankings, completions, or models and prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructgpt.errors import InputError
from instructgpt.evaluate.cache import ResultCache
from instructgpt.evaluate.datasets import parse_data_sources
from instructgpt.evaluate.inference import load_cached_model
from instructgpt.evaluate.tasks.base import EvalSettings, subsample
from instructgpt.models.policy import context_length, pick_device
from instructgpt.records import Completion, Prompt, Ranking, iter_rows, read_all_records, validate_record, write_records
from instructgpt.run.directory import console, content_hash
from instructgpt.sampling.completions import generate

if TYPE_CHECKING:
    from instructgpt.evaluate.cli import EvaluateConfig

_DATA_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
_SAVED_DATASET_FILES = ("dataset_dict.json", "dataset_info.json")


@dataclass(frozen=True, slots=True)
class PreferenceInputs:
    rankings: Sequence[Ranking] = ()
    completions: Sequence[Completion] = ()
    use_cases: Mapping[str, str] = field(default_factory=dict)

    def get_candidates(self) -> list[list[Completion]]:
        """Return lists of completions of one prompt: each ranked list once, or the n-th completion of every model."""
        candidates_by_key: dict[Any, list[Completion]] = {}
        for ranking in self.rankings:
            models = ranking.models or ()
            finish = ranking.finish or ("stop",) * len(models)
            ranked_completions = sorted(zip(models, ranking.completions, finish, strict=True))
            candidates_by_key[ranking.prompt, tuple(ranked_completions)] = [
                Completion(prompt=ranking.prompt, completion=text, model=model, finish=finish_reason)
                for model, text, finish_reason in ranked_completions
            ]
        last_turns: dict[tuple[str, str], int] = {}
        for completion in self.completions:
            turn = last_turns[completion.prompt, completion.model] = (
                last_turns.get((completion.prompt, completion.model), -1) + 1
            )
            candidates_by_key.setdefault((completion.prompt, turn), []).append(completion)
        return list(candidates_by_key.values())


def load_preference_inputs(config: EvaluateConfig, folder: Path, map_fn: Callable[..., Any] = map) -> PreferenceInputs:
    """Load the completions, sample the models on the prompts, or load the rankings. Samples are cached in `settings.folder`."""
    settings = EvalSettings(config.limit or None, None, config.seed)
    if config.completions:
        completions = read_all_records(Completion, config.completions)
        kept_prompts = set(subsample(list(dict.fromkeys(each.prompt for each in completions)), settings))
        return PreferenceInputs(completions=[each for each in completions if each.prompt in kept_prompts])
    if config.model:
        prompts = list(
            {
                prompt.text: prompt
                for prompt in read_all_records(Prompt, resolve_data_files(config, "preference", "prompts"))
            }.values()
        )
        prompts = subsample(prompts, settings)
        completions = _sample_completions(config, prompts, folder, map_fn)
        write_records(folder / "completions.jsonl", completions)
        return PreferenceInputs(
            completions=completions, use_cases={prompt.text: prompt.use_case for prompt in prompts if prompt.use_case}
        )
    rankings = [
        ranking
        for file in resolve_data_files(config, "preference", "rankings")
        for ranking in _read_rankings_or_ratings(file)
    ]
    kept_prompts = set(subsample(list(dict.fromkeys(ranking.prompt for ranking in rankings)), settings))
    return PreferenceInputs(rankings=[ranking for ranking in rankings if ranking.prompt in kept_prompts])


def _read_rankings_or_ratings(file: Path) -> list[Ranking]:
    """Read the rankings of a file. Without ranks, ratings give them: the higher is better, equal ratings tie."""
    rankings: list[Ranking] = []
    for location, row in iter_rows(file):
        ratings = row.get("ratings")
        if row.get("ranks") is None and isinstance(ratings, list) and all(isinstance(each, int) for each in ratings):
            levels = sorted(set(ratings), reverse=True)
            row = row | {"ranks": [1 + levels.index(each) for each in ratings]}
        try:
            rankings.append(validate_record(Ranking, row))
        except ValueError as error:
            raise InputError(f"{location}: {error}") from error
    if not rankings:
        raise InputError(f"{file}: no ranking in it")
    return rankings


def resolve_data_files(config: EvaluateConfig, evaluation: str, name: str) -> list[Path]:
    """Return the files behind `--data`. In a folder: files of that name, else files in a folder of that name, else all files."""
    paths, paths_by_name = parse_data_sources(config.data)
    files: list[Path] = []
    for path in [paths_by_name[evaluation]] if evaluation in paths_by_name else paths:
        if path.is_dir() and not any((path / mark).exists() for mark in _SAVED_DATASET_FILES):
            patterns = ((path, f"{name}."), (path / name, ""), (path, ""))
            matches = (
                sorted(f for f in folder.glob("*") if f.name.startswith(prefix) and f.name.endswith(_DATA_SUFFIXES))
                for folder, prefix in patterns
            )
            files += next((files_found for files_found in matches if files_found), [])
        else:
            files.append(path)
    if not files:
        data_args = ", ".join(config.data) or "(nothing)"
        raise InputError(f"--data {data_args}: no {name} there; expected a file of them, or a folder with {name}.jsonl")
    return files


def _sample_completions(
    config: EvaluateConfig, prompts: Sequence[Prompt], folder: Path, map_fn: Callable[..., Any] = map
) -> list[Completion]:
    """Sample one completion of every prompt by every model. Prompts too long for any of the models are left out and counted."""
    cache = ResultCache(folder / "completions")
    completions_by_model: dict[str, list[Completion | None]] = {}
    for name, source in parse_named_models(config.model).items():
        completions_by_model[name] = list(_sample_from_model(config, name, source, prompts, cache, map_fn))
    complete_indices = [
        index for index in range(len(prompts)) if all(each[index] is not None for each in completions_by_model.values())
    ]
    if not complete_indices:
        raise InputError(f"evaluate preference: no prompt leaves every model room for --max-tokens {config.max_tokens}")
    if len(complete_indices) < len(prompts):
        console.print(
            f"preference: {len(prompts) - len(complete_indices)} of {len(prompts)} prompts are too long for a model and left out"
        )
    return [
        completion
        for each in completions_by_model.values()
        for index in complete_indices
        if (completion := each[index]) is not None
    ]


def _sample_from_model(
    config: EvaluateConfig,
    name: str,
    source: str,
    prompts: Sequence[Prompt],
    cache: ResultCache,
    map_fn: Callable[..., Any],
) -> Iterator[Completion | None]:
    sampling = {"temperature": config.temperature, "max_tokens": config.max_tokens, "seed": config.seed}
    complete = partial(
        _complete_prompts, source, str(pick_device(config.device)), config.max_tokens, config.temperature
    )
    prompt_rows = [
        {"messages": [turn.model_dump() for turn in p.messages]} if p.messages is not None else {"prompt": p.prompt}
        for p in prompts
    ]
    results = cache.get_or_compute(
        content_hash(Path(source)), prompt_rows, sampling, complete, title=f"preference {name}", map_fn=map_fn
    )
    for prompt, (text, finish) in zip(prompts, results, strict=True):
        yield (
            None
            if text is None
            else Completion(prompt=prompt.text, completion=text, model=name, finish=finish, sampling=sampling)
        )


def _complete_prompts(
    source: str, device: str, max_tokens: int, temperature: float, prompt_rows: Sequence[Mapping[str, Any]], seed: int
) -> list[tuple[str | None, str]]:
    """Return each prompt's completion and finish reason; None where the prompt leaves no room in the context."""
    evaluated_model = load_cached_model(source, device)
    prompts = [Prompt.model_validate(each) for each in prompt_rows]
    max_prompt_tokens = context_length(evaluated_model.lm) - max_tokens
    fitting_indices = [
        index
        for index, each in enumerate(prompts)
        if len(evaluated_model.tokenizer.encode_prompt(each)) <= max_prompt_tokens
    ]
    results: list[tuple[str | None, str]] = [(None, "length") for _ in prompt_rows]
    completions = generate(
        evaluated_model.lm,
        evaluated_model.tokenizer,
        [prompts[index] for index in fitting_indices],
        max_tokens=max_tokens,
        seed=seed,
        temperature=temperature,
    )
    for index, completion in zip(fitting_indices, completions, strict=True):
        results[index] = (completion.text.strip(), "stop" if completion.finished else "length")
    return results


def parse_named_models(models: Sequence[str]) -> dict[str, str]:
    """Return {name: source} of NAME=MODEL arguments. Raise InputError if two models have the same name."""
    sources: dict[str, str] = {}
    for model_spec in models:
        name, _, source = model_spec.rpartition("=")
        name = name or Path(source).name
        if name in sources:
            raise InputError(
                f"evaluate: two models are called '{name}'; give them names, as in --model first={sources[name]} second={source}"
            )
        sources[name] = source
    return sources
