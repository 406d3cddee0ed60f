"""What preference is measured on: rankings that people made, completions that models wrote, or models and prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructgpt.errors import BadInput
from instructgpt.evaluate.cache import Cache
from instructgpt.evaluate.datasets import named_sources
from instructgpt.evaluate.inference import subject_at
from instructgpt.evaluate.tasks.base import Told, some
from instructgpt.models.policy import context_length, pick_device
from instructgpt.records import Completion, Prompt, Ranking, as_record, read_all, read_rows, write_records
from instructgpt.run.directory import console, content_hash
from instructgpt.sampling.completions import generate

if TYPE_CHECKING:
    from instructgpt.evaluate.cli import EvaluateConfig

ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")
SAVED = ("dataset_dict.json", "dataset_info.json")
"""What a data set saved to disk has in its folder."""


@dataclass(frozen=True, slots=True)
class Source:
    """Rankings, where people made some; completions by models, where they were made for this; the use case of a prompt's text."""

    rankings: Sequence[Ranking] = ()
    completions: Sequence[Completion] = ()
    use_cases: Mapping[str, str] = field(default_factory=dict)

    def candidates(self) -> list[list[Completion]]:
        """Lists of completions of one prompt by different models: those ranked together, once each; or the n-th of every model."""
        lists: dict[Any, list[Completion]] = {}
        for ranking in self.rankings:
            models = ranking.models or ()
            finish = ranking.finish or ("stop",) * len(models)
            shown = sorted(zip(models, ranking.completions, finish, strict=True))
            lists[ranking.prompt, tuple(shown)] = [
                Completion(prompt=ranking.prompt, completion=text, model=model, finish=how) for model, text, how in shown
            ]
        turns: dict[tuple[str, str], int] = {}
        for one in self.completions:
            turn = turns[one.prompt, one.model] = turns.get((one.prompt, one.model), -1) + 1
            lists.setdefault((one.prompt, turn), []).append(one)
        return list(lists.values())


def read_source(config: EvaluateConfig, folder: Path, over: Callable[..., Any] = map) -> Source:
    """What the command names: `--completions`, or `--model` with prompts, or rankings. What is sampled is kept in `folder`.

    Raises:
        BadInput: a file is wrong or holds nothing of the kind.
    """
    told = Told(config.limit or None, None, config.seed)
    if config.completions:
        made = read_all(Completion, config.completions)
        kept = set(some(list(dict.fromkeys(each.prompt for each in made)), told))
        return Source(completions=[each for each in made if each.prompt in kept])
    if config.model:
        prompts = list({prompt.text: prompt for prompt in read_all(Prompt, files_of(config, "preference", "prompts"))}.values())
        prompts = some(prompts, told)
        made = sampled(config, prompts, folder, over)
        write_records(folder / "completions.jsonl", made)
        return Source(completions=made, use_cases={prompt.text: prompt.use_case for prompt in prompts if prompt.use_case})
    rankings = [ranking for file in files_of(config, "preference", "rankings") for ranking in read_rankings(file)]
    kept = set(some(list(dict.fromkeys(ranking.prompt for ranking in rankings)), told))
    return Source(rankings=[ranking for ranking in rankings if ranking.prompt in kept])


def read_rankings(file: Path) -> list[Ranking]:
    """The rankings of a file; where a row has ratings and no ranks, the higher rating is better and equal ones tie.

    Raises:
        BadInput: a row is none.
    """
    rankings: list[Ranking] = []
    for where, row in read_rows(file):
        ratings = row.get("ratings")
        if row.get("ranks") is None and isinstance(ratings, list) and all(isinstance(each, int) for each in ratings):
            levels = sorted(set(ratings), reverse=True)
            row = row | {"ranks": [1 + levels.index(each) for each in ratings]}
        try:
            rankings.append(as_record(Ranking, row))
        except ValueError as error:
            raise BadInput(f"{where}: {error}") from error
    if not rankings:
        raise BadInput(f"{file}: no ranking in it")
    return rankings


def files_of(config: EvaluateConfig, evaluation: str, name: str) -> list[Path]:
    """The files behind `--data`: those given; of a folder the files of that name, else those in a folder of that name, else all.

    Raises:
        BadInput: there is none.
    """
    places, named = named_sources(config.data)
    files: list[Path] = []
    for place in [named[evaluation]] if evaluation in named else places:
        if place.is_dir() and not any((place / mark).exists() for mark in SAVED):
            sought = ((place, f"{name}."), (place / name, ""), (place, ""))
            found = (
                sorted(f for f in folder.glob("*") if f.name.startswith(start) and f.name.endswith(ENDINGS)) for folder, start in sought
            )
            files += next((some for some in found if some), [])
        else:
            files.append(place)
    if not files:
        where = ", ".join(config.data) or "(nothing)"
        raise BadInput(f"--data {where}: no {name} there; expected a file of them, or a folder with {name}.jsonl")
    return files


def sampled(config: EvaluateConfig, prompts: Sequence[Prompt], folder: Path, over: Callable[..., Any] = map) -> list[Completion]:
    """One completion of every prompt by every model, made once and kept. A prompt that does not fit every model is left out, and said."""
    kept = Cache(folder / "completions")
    made: dict[str, list[Completion | None]] = {}
    for name, source in named_models(config.model).items():
        made[name] = list(_completions(config, name, source, prompts, kept, over))
    whole = [place for place in range(len(prompts)) if all(each[place] is not None for each in made.values())]
    if not whole:
        raise BadInput(f"evaluate preference: no prompt leaves every model room for --max-tokens {config.max_tokens}")
    if len(whole) < len(prompts):
        console.print(f"preference: {len(prompts) - len(whole)} of {len(prompts)} prompts are too long for a model and left out")
    return [completion for each in made.values() for place in whole if (completion := each[place]) is not None]


def _completions(
    config: EvaluateConfig, name: str, source: str, prompts: Sequence[Prompt], kept: Cache, over: Callable[..., Any]
) -> Iterator[Completion | None]:
    how = {"temperature": config.temperature, "max_tokens": config.max_tokens, "seed": config.seed}
    make = partial(completed, source, str(pick_device(config.device)), config.max_tokens, config.temperature)
    asked = [{"messages": [turn.model_dump() for turn in p.messages]} if p.messages is not None else {"prompt": p.prompt} for p in prompts]
    found = kept.completions(content_hash(Path(source)), asked, how, make, title=f"preference {name}", over=over)
    for prompt, (text, finish) in zip(prompts, found, strict=True):
        yield None if text is None else Completion(prompt=prompt.text, completion=text, model=name, finish=finish, sampling=how)


def completed(
    source: str, device: str, max_tokens: int, temperature: float, asked: Sequence[Mapping[str, Any]], seed: int
) -> list[tuple[str | None, str]]:
    """The completion of each prompt by the model of a directory and how it ended; None where the prompt leaves it no room."""
    subject = subject_at(source, device)
    records = [Prompt.model_validate(each) for each in asked]
    room = context_length(subject.model) - max_tokens
    fits = [place for place, each in enumerate(records) if len(subject.render.prompt(each)) <= room]
    said: list[tuple[str | None, str]] = [(None, "length") for _ in asked]
    made = generate(
        subject.model, subject.render, [records[place] for place in fits], max_tokens=max_tokens, seed=seed, temperature=temperature
    )
    for place, one in zip(fits, made, strict=True):
        said[place] = (one.text.strip(), "stop" if one.finished else "length")
    return said


def named_models(models: Sequence[str]) -> dict[str, str]:
    """Where each model is, by the name it has in the results. Raises BadInput where two have one name."""
    found: dict[str, str] = {}
    for said in models:
        name, _, source = said.rpartition("=")
        name = name or Path(source).name
        if name in found:
            raise BadInput(f"evaluate: two models are called '{name}'; give them names, as in --model first={found[name]} second={source}")
        found[name] = source
    return found
