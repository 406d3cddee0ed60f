"""Inputs of the preference evaluation: rankings, completions, or models and prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from instructgpt.errors import InputError
from instructgpt.evaluate.cache import ResultCache
from instructgpt.evaluate.comparison_settings import ComparisonSettings, PreferenceSettings
from instructgpt.evaluate.datasets import parse_data_sources
from instructgpt.evaluate.inference import load_cached_model
from instructgpt.evaluate.tasks.base import EvalSettings, subsample
from instructgpt.io import SkippedLines, iter_rows, skip_or_raise
from instructgpt.models.loading import parse_named_models
from instructgpt.models.policy import context_length, pick_device
from instructgpt.records import Completion, Prompt, Ranking, read_all_records, validate_record, write_records
from instructgpt.run.directory import console, content_hash
from instructgpt.sampling.completions import generate

_DATA_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
_SAVED_DATASET_FILES = ("dataset_dict.json", "dataset_info.json")


@dataclass(frozen=True, slots=True)
class PreferenceInputs:
    """Rankings by people, or completions by models; `use_cases` maps a prompt's text to its use case."""

    rankings: Sequence[Ranking] = ()
    completions: Sequence[Completion] = ()
    use_cases: Mapping[str, str] = field(default_factory=dict)

    def get_candidates(self) -> list[list[Completion]]:
        """Return lists of completions of one prompt: each ranked list once, or the n-th completion of every model."""
        candidates: dict[Any, list[Completion]] = {}
        for ranking in self.rankings:
            models = ranking.models or ()
            finish = ranking.finish or ("stop",) * len(models)
            parts = sorted(zip(models, ranking.completions, finish, strict=True))
            candidates[ranking.prompt, tuple(parts)] = [
                Completion.model_validate(
                    ranking.prompt_columns() | {"completion": text, "model": model, "finish": reason}
                )
                for model, text, reason in parts
            ]
        counts: dict[tuple[str, str], int] = {}
        for completion in self.completions:
            key = completion.prompt, completion.model
            counts[key] = counts.get(key, -1) + 1
            candidates.setdefault((completion.prompt, counts[key]), []).append(completion)
        return list(candidates.values())


def load_preference_inputs(settings: PreferenceSettings, map_fn: Callable[..., Any] = map) -> PreferenceInputs:
    """Load the completions, sample the models on the prompts, or load the rankings. Samples are cached."""
    skipped = SkippedLines(settings.skip_bad)
    inputs = _load_inputs(settings, skipped, map_fn)
    if skipped.reasons:
        summary = f"left out {len(skipped.reasons)} bad rows (the first: {skipped.reasons[0]})"
        console.print(f"preference: {summary}", highlight=False, markup=False, soft_wrap=True)
    return inputs


def _load_inputs(settings: PreferenceSettings, skipped: SkippedLines, map_fn: Callable[..., Any]) -> PreferenceInputs:
    if settings.completions:
        completions = read_all_records(Completion, settings.completions, skipped)
        kept_prompts = subsample_prompts([completion.prompt for completion in completions], settings)
        return PreferenceInputs(completions=[c for c in completions if c.prompt in kept_prompts])
    if settings.model:
        records = read_all_records(Prompt, resolve_data_files(settings.data, "preference", "prompts"), skipped)
        kept_prompts = subsample_prompts([prompt.prompt for prompt in records], settings)
        prompts = [prompt for text, prompt in {p.prompt: p for p in records}.items() if text in kept_prompts]
        completions = _sample_completions(settings, prompts, map_fn)
        write_records(settings.folder / "completions.jsonl", completions)
        return PreferenceInputs(
            completions=completions, use_cases={p.prompt: p.use_case for p in prompts if p.use_case}
        )
    files = resolve_data_files(settings.data, "preference", "rankings")
    rankings = [ranking for file in files for ranking in _read_rankings_or_ratings(file, skipped)]
    kept_prompts = subsample_prompts([ranking.prompt for ranking in rankings], settings)
    return PreferenceInputs(rankings=[ranking for ranking in rankings if ranking.prompt in kept_prompts])


def subsample_prompts(prompts: Sequence[str], settings: ComparisonSettings) -> set[str]:
    """Return the distinct prompts, or `settings.limit` random ones of them."""
    return set(subsample(list(dict.fromkeys(prompts)), EvalSettings(settings.limit or None, None, settings.seed)))


def _read_rankings_or_ratings(file: Path, skipped: SkippedLines) -> list[Ranking]:
    """Read the rankings of a file. Without ranks, ratings give them: the higher is better, equal ratings tie."""
    rankings: list[Ranking] = []
    for location, row in iter_rows(file, skipped):
        ratings = row.get("ratings")
        if row.get("ranks") is None and isinstance(ratings, list) and all(isinstance(r, int) for r in ratings):
            levels = sorted(set(ratings), reverse=True)
            row = row | {"ranks": [1 + levels.index(rating) for rating in ratings]}
        try:
            rankings.append(validate_record(Ranking, row))
        except ValueError as error:
            skip_or_raise(location, error, skipped)
    if not rankings:
        raise InputError(f"{file}: the file has no rankings")
    return rankings


def resolve_data_files(data: Sequence[str], evaluation: str, name: str) -> list[Path]:
    """Return the files of `--data`. In a folder: files of that name, else those in a folder of that name, else all."""
    paths, named_paths = parse_data_sources(data)
    files: list[Path] = []
    for path in [named_paths[evaluation]] if evaluation in named_paths else paths:
        if path.is_dir() and not any((path / marker).exists() for marker in _SAVED_DATASET_FILES):
            patterns = ((path, f"{name}."), (path / name, ""), (path, ""))
            matches = (
                sorted(f for f in folder.glob("*") if f.name.startswith(prefix) and f.name.endswith(_DATA_SUFFIXES))
                for folder, prefix in patterns
            )
            files += next(filter(None, matches), [])
        else:
            files.append(path)
    if not files:
        sources = ", ".join(data) or "(empty)"
        raise InputError(f"--data {sources}: no {name} found; expected a file of {name}, or a folder with {name}.jsonl")
    return files


def _sample_completions(
    settings: PreferenceSettings, prompts: Sequence[Prompt], map_fn: Callable[..., Any]
) -> list[Completion]:
    """Sample one completion of every prompt by every model. Prompts too long for any of the models are left out."""
    columns = [
        list(_sample_from_model(settings, name, source, prompts, map_fn))
        for name, source in parse_named_models(settings.model).items()
    ]
    fitting = [index for index in range(len(prompts)) if all(column[index] is not None for column in columns)]
    if not fitting:
        raise InputError(
            f"evaluate preference: --max-tokens {settings.sampling.max_tokens} leaves no room for any prompt"
        )
    if len(fitting) < len(prompts):
        num_dropped = len(prompts) - len(fitting)
        console.print(f"preference: left out {num_dropped} of {len(prompts)} prompts that are too long for a model")
    return [c for column in columns for index in fitting if (c := column[index]) is not None]


def _sample_from_model(
    settings: PreferenceSettings, name: str, source: str, prompts: Sequence[Prompt], map_fn: Callable[..., Any]
) -> Iterator[Completion | None]:
    sampling = settings.sampling.sampling_column(settings.seed)
    arguments = settings.sampling.sampling_arguments()
    compute = partial(_complete_prompts, source, str(pick_device(settings.device)), arguments)
    prompt_rows = [prompt.prompt_columns() for prompt in prompts]
    cache, weights_hash = ResultCache(settings.folder / "completions"), content_hash(Path(source))
    options: dict[str, Any] = {"title": f"preference {name}", "map_fn": map_fn}
    results = cache.get_or_compute(weights_hash, prompt_rows, sampling, compute, **options)
    for prompt, (text, finish) in zip(prompts, results, strict=True):
        fields = {"completion": text, "model": name, "finish": finish, "sampling": sampling}
        yield None if text is None else Completion.model_validate(prompt.prompt_columns() | fields)


def _complete_prompts(
    source: str, device: str, sampling: Mapping[str, Any], prompt_rows: Sequence[Mapping[str, Any]], seed: int
) -> list[tuple[str | None, str]]:
    """Return each prompt's completion and finish reason; None where the prompt leaves no room in the context."""
    model = load_cached_model(source, device)
    prompts = [Prompt.model_validate(row) for row in prompt_rows]
    room = context_length(model.lm) - sampling["max_tokens"]
    fitting = [i for i, prompt in enumerate(prompts) if len(model.tokenizer.encode_prompt(prompt)) <= room]
    completions = generate(model.lm, model.tokenizer, [prompts[index] for index in fitting], seed=seed, **sampling)
    results: list[tuple[str | None, str]] = [(None, "length")] * len(prompts)
    for index, completion in zip(fitting, completions, strict=True):
        results[index] = (completion.text.strip(), completion.finish)
    return results
