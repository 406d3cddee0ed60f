"""Tasks of lm-evaluation-harness as they are there, with our scoring and sampling behind them.

The library is an extra: without it, one line says how to get it. Texts become tokens as its own Hugging Face model makes them (context
and continuation together, split at the context's length), so that the same model on the same data gives the same numbers.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from instructgpt import functional
from instructgpt.data.packing import Example
from instructgpt.errors import BadInput, in_one_line
from instructgpt.evaluate.aggregate import Row
from instructgpt.evaluate.cache import Cache
from instructgpt.evaluate.inference import Subject, likeliest, scored_completions
from instructgpt.evaluate.tasks.base import fitting
from instructgpt.evaluate.tasks.loading import rows_of
from instructgpt.io import json_line, write_text
from instructgpt.models.policy import context_length
from instructgpt.sampling.completions import continue_text

PREFIX = "harness/"
"""What stands before a task's name in the rows."""
NORMAL = 1.959964
"""Standard errors from the middle to an end of a 95 % interval."""
MAX_TOKENS = 256
"""Where a continuation is cut off if the task does not say."""


def library() -> Any:
    """The harness.

    Raises:
        BadInput: it is not installed.
    """
    try:
        import lm_eval
        import lm_eval.tasks
    except ImportError as error:
        raise BadInput("evaluate: --harness needs lm-evaluation-harness; install it with: pip install 'instructgpt[harness]'") from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return lm_eval


class Harness:
    """The harness's tasks, found once for all models."""

    def __init__(self, names: Sequence[str], folder: Path | None, sources: Mapping[str, Path], limit: int | None, seed: int) -> None:
        """Find the tasks and read their data.

        Args:
            names: tasks, groups or tags of the harness, or YAML files. folder: YAML files of further tasks.
            sources: local data for some of the tasks, in place of the hub's: the rows have the columns of the data set there.
            limit: questions of each task, the first ones, as the harness has it.

        Raises:
            BadInput: a task is unknown, or its data does not load.
        """
        self.names, self.limit, self.seed = names, limit, seed
        self._lm_eval = library()
        manager = None
        if folder is not None:
            manager = self._lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False)
        if manager is None or any(name not in manager.task_index and not Path(name).is_file() for name in names):
            manager = self._lm_eval.tasks.TaskManager(include_path=str(folder) if folder else None)
        self._manager = manager
        with tempfile.TemporaryDirectory() as scratch:
            for name in names:
                if name not in manager.task_index and not Path(name).is_file():
                    raise BadInput(f"evaluate: lm-evaluation-harness has no task '{name}' (--include-path takes a folder with more)")
            specs = [local_task(manager.task_index[name].yaml_path, name, sources[name], Path(scratch)) if name in sources else name
                     for name in names]  # fmt: skip
            try:
                self._tasks = list(manager.load(specs)["tasks"].values())
            except Exception as error:  # whatever a task's own code or the data library raises
                raise BadInput(
                    f"evaluate: a task of {', '.join(names)} does not load ({type(error).__name__}: {in_one_line(error, 300)}); "
                    "for local data give --data TASK=FILE, or --include-path with a YAML file of its own"
                ) from error

    def measure(self, name: str, weights: str, load: Callable[[], Subject], cache: Cache) -> list[Row]:
        """Every task's metrics of one model, with intervals from the harness's standard errors.

        Args:
            name: of the model. weights: their hash. load: gives the model when it is first needed.
        """
        model = wrapped(load, weights, cache, self.seed)
        found = self._lm_eval.simple_evaluate(
            model=model,
            tasks=self._tasks,
            task_manager=self._manager,
            limit=self.limit,
            bootstrap_iters=1000,
            log_samples=False,
            random_seed=self.seed,
            numpy_random_seed=self.seed,
            torch_random_seed=self.seed,
            fewshot_random_seed=self.seed,
        )
        return list(rows_in(found, name))


def local_task(yaml: Path | None, name: str, source: Path, folder: Path) -> str:
    """A task of the harness on local rows: a YAML file that includes the task's own and names other data.

    Raises:
        BadInput: the task is not made of YAML, or the data is wrong.
    """
    if yaml is None:
        raise BadInput(f"--data {name}={source}: the task {name} has no YAML file to be given other data")
    rows = rows_of(source)
    parts = {
        "train": [row for row in rows if row.get("split") == "train"],
        "validation": [row for row in rows if row.get("split") != "train"],
    }
    files = {}
    for part, chosen in parts.items():
        if chosen:
            write_text(folder / f"{name}-{part}.jsonl", (json_line({k: v for k, v in row.items() if k != "split"}) for row in chosen))
            files[part] = str(folder / f"{name}-{part}.jsonl")
    splits = {"training_split": "train" if "train" in files else None, "validation_split": "validation", "test_split": None}
    text = {"include": str(yaml), "task": name, "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    write_text(folder / f"{name}.yaml", json_line(text | splits | {"fewshot_split": splits["training_split"]}))  # JSON is YAML
    return str(folder / f"{name}.yaml")


def rows_in(found: Mapping[str, Any], model: str) -> Iterator[Row]:
    """The harness's results as rows: `harness/TASK`, its metric, its filter as the condition where it has one."""
    for task, numbers in found["results"].items():
        count = found.get("n-samples", {}).get(task, {}).get("effective", 0)
        for name, value in numbers.items():
            metric, _, filtered = name.partition(",")
            if metric.endswith("_stderr") or not isinstance(value, int | float) or "," not in name:
                continue
            error = numbers.get(f"{metric}_stderr,{filtered}")
            half = NORMAL * error if isinstance(error, int | float) else None
            condition = "" if filtered == "none" else filtered
            low, high = (None, None) if half is None else (value - half, value + half)
            yield Row(f"{PREFIX}{task}", metric, model, condition, float(value), low, high, count)


class Asked:
    """What the harness asks of a model: log-probabilities of continuations and of whole texts, and continuations up to a stop.

    It is joined with the harness's own class, which turns pairs of texts into tokens and calls `_loglikelihood_tokens`.
    """

    backend = "causal"

    def __init__(self, load: Callable[[], Subject], weights: str, cache: Cache, seed: int) -> None:
        """Take the model, to be loaded when it is first needed, and where its replies are kept."""
        super().__init__()
        self.load, self.weights, self.replies, self.seed = load, weights, cache, seed

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.load().render.eos

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context."""
        start = self.load().render.tokenizer.bos_token_id
        return self.eot_token_id if start is None else int(start)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokens of a text, as the tokenizer makes them unless told otherwise."""
        how = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        tokens: list[int] = self.load().render.tokenizer.encode(string, **how)
        return tokens

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        def make(pairs: list[Any], seed: int) -> list[tuple[float, bool]]:  # noqa: ARG001
            return scored_pairs(self.load().model, pairs)

        pairs = [[list(before), list(after)] for _, before, after in requests]
        said = self.replies.completions(self.weights, pairs, {"asked": "log-probability"}, make, title="log-probabilities")
        return [(float(total), bool(greedy)) for total, greedy in said]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
        """The log-probability of whole texts, cut into windows that do not overlap where they are longer than the context."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        windows: list[tuple[None, list[int], list[int]]] = []
        counts = []
        room = context_length(self.load().model)
        for request in requests:
            tokens = self.tok_encode(request.args[0])
            cut = get_rolling_token_windows(token_list=tokens, prefix_token=self.prefix_token_id, max_seq_len=room, context_len=1)
            parts = [(None, *make_disjoint_window(part)) for part in cut]
            windows += parts
            counts.append(len(parts))
        sums = iter(self._loglikelihood_tokens(windows))
        return [sum(next(sums)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
        """Continuations, cut before the first of the stops."""
        said: dict[int, str] = {}
        alike: dict[tuple[Any, ...], list[int]] = {}
        for place, request in enumerate(requests):
            alike.setdefault(how_to_go_on(request.args[1]), []).append(place)
        for how, places in alike.items():
            settings = dict(zip(("until", "max_tokens", "temperature", "top_p"), how, strict=True)) | {"seed": self.seed}

            def make(texts: list[Any], seed: int, how: tuple[Any, ...] = how) -> list[str]:
                return continued(self.load(), texts, how, seed)

            texts = [requests[place].args[0] for place in places]
            made = self.replies.completions(self.weights, texts, settings, make, title="continuations")
            said |= dict(zip(places, made, strict=True))
        return [said[place] for place in range(len(requests))]


def wrapped(load: Callable[[], Subject], weights: str, cache: Cache, seed: int) -> Any:
    """A model as the harness wants it."""
    from lm_eval.api.model import TemplateLM

    return type("Model", (Asked, TemplateLM), {})(load, weights, cache, seed)


@torch.no_grad()
def scored_pairs(model: Any, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
    """(log-probability, whether it is the likeliest) of what follows each context, in tokens.

    Two that are too long together lose their beginning. The last token is never read, so one more than the context fits.
    """
    room = context_length(model)
    fits = [place for place, (before, after) in enumerate(pairs) if len(before) + len(after) <= room]
    found = dict(zip(fits, scored_completions(model, [Example(*pairs[place]) for place in fits]), strict=True))
    for place, (before, after) in enumerate(pairs):
        if place not in found:
            tokens = torch.tensor([*before, *after][-(room + 1) :], device=model.device)
            logits = model(tokens[None, :-1]).logits[0, -len(after) :]
            wanted = tokens[-len(after) :]
            logp = functional.token_logp(logits, wanted).double()
            found[place] = (float(logp.sum()), bool(likeliest(logits, wanted).all()))
    return [found[place] for place in range(len(pairs))]


def how_to_go_on(told: Mapping[str, Any]) -> tuple[tuple[str, ...], int, float, float]:
    """(stops, longest in tokens, temperature, top_p) of a request for a continuation."""
    stops = told.get("until") or ()
    most = told.get("max_gen_toks", told.get("max_new_tokens", MAX_TOKENS))
    temperature = float(told.get("temperature", 1.0)) if told.get("do_sample", float(told.get("temperature", 0.0)) > 0) else 0.0
    return ((stops,) if isinstance(stops, str) else tuple(stops), int(most), temperature, float(told.get("top_p", 1.0)))


def continued(subject: Subject, texts: Sequence[str], how: tuple[Any, ...], seed: int) -> list[str]:
    """Continuations, cut before the first of the stops."""
    stops, most, temperature, top_p = how
    size = min(most, context_length(subject.model) // 2)
    fit = [fitting(subject, text, size) for text in texts]
    made = continue_text(subject.model, subject.render, fit, max_tokens=size, seed=seed, temperature=temperature, top_p=top_p, stop=None)
    said = []
    for text, _ in made:
        for stop in filter(None, stops):
            text = text.partition(stop)[0]
        said.append(text)
    return said
