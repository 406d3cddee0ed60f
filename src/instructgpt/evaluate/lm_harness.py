"""Run tasks of lm-evaluation-harness on the project's scoring and sampling.

The library is an optional extra. Texts are tokenized as its own Hugging Face model does (context and continuation
together, truncated to the context length), so that the same model on the same data gives the same numbers.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from instructgpt import functional
from instructgpt.config import did_you_mean
from instructgpt.data.packing import TokenizedExample
from instructgpt.errors import InputError, one_line
from instructgpt.evaluate.cache import ResultCache
from instructgpt.evaluate.inference import EvaluatedModel, completion_logps_and_greedy, is_argmax
from instructgpt.evaluate.tasks.base import truncate_to_context
from instructgpt.evaluate.tasks.loading import load_task_rows
from instructgpt.io import format_json_line, write_text_atomic
from instructgpt.models.policy import context_length
from instructgpt.results import ResultRow
from instructgpt.sampling.completions import continue_text

_ModelLoader = Callable[[], EvaluatedModel]
_HARNESS_PREFIX = "harness/"
_Z_95 = 1.959964
"""Half-width of a 95 % interval in standard errors."""
_DEFAULT_MAX_TOKENS = 256


def _import_lm_eval() -> Any:
    """Import the harness. Raise InputError if it is not installed."""
    try:
        import lm_eval
        import lm_eval.tasks
    except ImportError as error:
        hint = "pip install 'instructgpt[harness]'"
        raise InputError(f"evaluate: --harness needs lm-evaluation-harness; install it with: {hint}") from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return lm_eval


class LMHarness:
    def __init__(
        self,
        task_names: Sequence[str],
        yaml_folder: Path | None,
        sources: Mapping[str, Path],
        limit: int | None,
        seed: int,
    ) -> None:
        """Find the tasks and load their data. Raise InputError if a task is unknown or its data does not load.

        Args:
            task_names: tasks, groups or tags of the harness, or YAML files; `yaml_folder` has more of these.
            sources: local data in place of the hub's, by task; rows have the hub's columns.
            limit: number of questions per task, the first ones, as in the harness.
        """
        self.task_names, self.limit, self.seed = task_names, limit, seed
        self._lm_eval = _import_lm_eval()
        include_path = str(yaml_folder) if yaml_folder else None
        manager, unindexed = None, list(task_names)
        for include_defaults in (False, True) if include_path else (True,):
            if unindexed:  # indexing the default tasks takes half a minute
                manager = self._lm_eval.tasks.TaskManager(include_path=include_path, include_defaults=include_defaults)
                unindexed = [name for name in task_names if name not in manager.task_index and not Path(name).is_file()]
        if manager is None or unindexed:
            suggestion = "" if manager is None else did_you_mean(unindexed[0], manager.task_index)
            hint = suggestion or " (--include-path takes a folder with more tasks)"
            raise InputError(f"evaluate: lm-evaluation-harness has no task '{unindexed[0]}'{hint}")
        self._manager = manager
        with tempfile.TemporaryDirectory() as scratch:
            specs = [
                _write_local_task(manager.task_index[name].yaml_path, name, sources[name], Path(scratch))
                if name in sources
                else name
                for name in task_names
            ]
            try:
                self._tasks = list(manager.load(specs)["tasks"].values())
            except Exception as error:  # whatever a task's own code or the data library raises
                problem = f"{type(error).__name__}: {one_line(error, 300)}"
                hint = "for local data give --data TASK=FILE, or --include-path with its YAML file"
                names = ", ".join(task_names)
                raise InputError(f"evaluate: a task of {names} does not load ({problem}); {hint}") from error

    def measure(
        self, model_name: str, weights_hash: str, load_model: _ModelLoader, cache: ResultCache
    ) -> list[ResultRow]:
        """Return every task's metrics of one model. `load_model` is called only for replies that the cache lacks."""
        seeds = {f"{name}random_seed": self.seed for name in ("", "numpy_", "torch_", "fewshot_")}
        results = self._lm_eval.simple_evaluate(
            model=_make_lm_adapter(load_model, weights_hash, cache, self.seed),
            tasks=self._tasks,
            task_manager=self._manager,
            limit=self.limit,
            bootstrap_iters=1000,
            log_samples=False,
            **seeds,
        )
        return list(iter_harness_rows(results, model_name))


def _write_local_task(yaml_path: Path | None, name: str, source: Path, folder: Path) -> str:
    """Write a YAML file that includes a task and replaces its data by local rows. Returns its path."""
    if yaml_path is None:
        raise InputError(f"--data {name}={source}: the task {name} has no YAML file, so its data cannot be replaced")
    splits: dict[str, list[dict[str, Any]]] = {}
    for row in load_task_rows(source):
        split = "train" if row.pop("split", None) == "train" else "validation"
        splits.setdefault(split, []).append(row)
    files = {split: folder / f"{name}-{split}.jsonl" for split in splits}
    for split, rows in splits.items():
        write_text_atomic(files[split], map(format_json_line, rows))
    config = {
        "include": str(yaml_path),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(file) for split, file in files.items()}},
        "training_split": "train" if "train" in files else None,
        "fewshot_split": "train" if "train" in files else None,
        "validation_split": "validation",
        "test_split": None,
    }
    path = folder / f"{name}.yaml"
    write_text_atomic(path, format_json_line(config))  # JSON is YAML
    return str(path)


def iter_harness_rows(results: Mapping[str, Any], model: str) -> Iterator[ResultRow]:
    """Yield the harness's results as rows: evaluation `harness/TASK`, the metric, and the filter as condition."""
    for task, metrics in results["results"].items():
        count = results.get("n-samples", {}).get(task, {}).get("effective", 0)
        for name, value in metrics.items():
            metric, _, filter_name = name.partition(",")
            if metric.endswith("_stderr") or not isinstance(value, int | float) or "," not in name:
                continue
            stderr = metrics.get(f"{metric}_stderr,{filter_name}")
            margin = _Z_95 * stderr if isinstance(stderr, int | float) else None
            condition = "" if filter_name == "none" else filter_name
            low, high = (None, None) if margin is None else (value - margin, value + margin)
            yield ResultRow(f"{_HARNESS_PREFIX}{task}", metric, model, condition, float(value), low, high, count)


class _LMAdapter:
    """The methods that the harness calls; its `TemplateLM` tokenizes text pairs and calls `_loglikelihood_tokens`."""

    backend = "causal"

    def __init__(self, load_model: _ModelLoader, weights_hash: str, cache: ResultCache, seed: int) -> None:
        super().__init__()
        self.load_model, self.weights_hash, self.result_cache, self.seed = load_model, weights_hash, cache, seed

    @property
    def eot_token_id(self) -> int:
        return self.load_model().tokenizer.eos

    @property
    def prefix_token_id(self) -> int:
        """The token in front of a text that has no context."""
        bos_token_id = self.load_model().tokenizer.hf_tokenizer.bos_token_id
        return self.eot_token_id if bos_token_id is None else int(bos_token_id)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        tokens: list[int] = self.load_model().tokenizer.hf_tokenizer.encode(string, **options)
        return tokens

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        def compute(pairs: list[Any], seed: int) -> list[tuple[float, bool]]:  # noqa: ARG001
            return _token_pair_logps(self.load_model().lm, pairs)

        pairs = [[list(context), list(continuation)] for _, context, continuation in requests]
        settings, get = {"asked": "log-probability"}, self.result_cache.get_or_compute
        results = get(self.weights_hash, pairs, settings, compute, title="log-probabilities")
        return [(float(logp), bool(greedy)) for logp, greedy in results]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
        """Return the log-probability of whole texts, in disjoint windows if they exceed the context."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        windows: list[tuple[None, list[int], list[int]]] = []
        counts = []
        max_length = context_length(self.load_model().lm)
        for request in requests:
            ids = self.tok_encode(request.args[0])
            parts = list(get_rolling_token_windows(ids, self.prefix_token_id, max_seq_len=max_length, context_len=1))
            windows += [(None, *make_disjoint_window(part)) for part in parts]
            counts.append(len(parts))
        sums = iter(self._loglikelihood_tokens(windows))
        return [sum(next(sums)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
        continuations: dict[int, str] = {}
        groups: dict[tuple[Any, ...], list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(parse_generation_args(request.args[1]), []).append(index)
        for generation_args, indices in groups.items():
            settings = dict(zip(("until", "max_tokens", "temperature", "top_p"), generation_args, strict=True))
            settings |= {"seed": self.seed}

            def compute(texts: list[Any], seed: int, generation_args: tuple[Any, ...] = generation_args) -> list[str]:
                return generate_until_stop(self.load_model(), texts, generation_args, seed)

            texts, get = [requests[index].args[0] for index in indices], self.result_cache.get_or_compute
            values = get(self.weights_hash, texts, settings, compute, title="continuations")
            continuations |= dict(zip(indices, values, strict=True))
        return [continuations[index] for index in range(len(requests))]


def _make_lm_adapter(load_model: _ModelLoader, weights_hash: str, cache: ResultCache, seed: int) -> Any:
    from lm_eval.api.model import TemplateLM

    return type("Model", (_LMAdapter, TemplateLM), {})(load_model, weights_hash, cache, seed)


@torch.no_grad()
def _token_pair_logps(lm: Any, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
    """Return (log-probability, is greedy) of the continuation of each (context, continuation) pair of tokens.

    A pair that is too long loses its beginning. The last token is never an input, so context length + 1 tokens fit.
    """
    max_length = context_length(lm)
    fitting = [index for index, pair in enumerate(pairs) if sum(map(len, pair)) <= max_length]
    examples = [TokenizedExample(*pairs[index]) for index in fitting]
    results = dict(zip(fitting, completion_logps_and_greedy(lm, examples), strict=True))
    for index, (context, continuation) in enumerate(pairs):
        if index not in results:
            ids = torch.tensor([*context, *continuation][-(max_length + 1) :], device=lm.device)
            logits = lm(ids[None, :-1]).logits[0, -len(continuation) :]
            targets = ids[-len(continuation) :]
            logp = functional.token_logp(logits, targets).double()
            results[index] = (float(logp.sum()), bool(is_argmax(logits, targets).all()))
    return [results[index] for index in range(len(pairs))]


def parse_generation_args(gen_kwargs: Mapping[str, Any]) -> tuple[tuple[str, ...], int, float, float]:
    """Return (stop strings, maximum tokens, temperature, top_p) of a generation request."""
    stops = gen_kwargs.get("until") or ()
    stops = (stops,) if isinstance(stops, str) else tuple(stops)
    max_tokens = gen_kwargs.get("max_gen_toks", gen_kwargs.get("max_new_tokens", _DEFAULT_MAX_TOKENS))
    is_sampled = gen_kwargs.get("do_sample", float(gen_kwargs.get("temperature", 0.0)) > 0)
    temperature = float(gen_kwargs.get("temperature", 1.0)) if is_sampled else 0.0
    return stops, int(max_tokens), temperature, float(gen_kwargs.get("top_p", 1.0))


def generate_until_stop(
    model: EvaluatedModel, texts: Sequence[str], generation_args: tuple[Any, ...], seed: int
) -> list[str]:
    """Continue texts and cut each continuation before its first stop string."""
    stops, max_tokens, temperature, top_p = generation_args
    max_tokens = min(max_tokens, context_length(model.lm) // 2)
    sampling: dict[str, Any] = {"max_tokens": max_tokens, "seed": seed, "temperature": temperature, "top_p": top_p}
    prompts = [truncate_to_context(model, text, max_tokens) for text in texts]
    sampling["stop"] = tuple(filter(None, stops))
    return [text for text, _ in continue_text(model.lm, model.tokenizer, prompts, **sampling)]
