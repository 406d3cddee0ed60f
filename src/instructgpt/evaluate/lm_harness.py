"""Run tasks of lm-evaluation-harness on the project's scoring and sampling.

The library is an optional extra. Texts are tokenized as its own Hugging Face model does (context and continuation together,
truncated to the context length), so that the same model on the same data gives the same numbers.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from instructgpt import functional
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
        raise InputError(
            "evaluate: --harness needs lm-evaluation-harness; install it with: pip install 'instructgpt[harness]'"
        ) from error
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
        manager = None
        if yaml_folder is not None:
            manager = self._lm_eval.tasks.TaskManager(include_path=str(yaml_folder), include_defaults=False)
        if manager is None or any(name not in manager.task_index and not Path(name).is_file() for name in task_names):
            manager = self._lm_eval.tasks.TaskManager(include_path=str(yaml_folder) if yaml_folder else None)
        self._manager = manager
        with tempfile.TemporaryDirectory() as scratch:
            for name in task_names:
                if name not in manager.task_index and not Path(name).is_file():
                    raise InputError(
                        f"evaluate: lm-evaluation-harness has no task '{name}' (--include-path takes a folder with more)"
                    )
            specs = [
                _write_local_task(manager.task_index[name].yaml_path, name, sources[name], Path(scratch))
                if name in sources
                else name
                for name in task_names
            ]
            try:
                self._tasks = list(manager.load(specs)["tasks"].values())
            except Exception as error:  # whatever a task's own code or the data library raises
                raise InputError(
                    f"evaluate: a task of {', '.join(task_names)} does not load ({type(error).__name__}: {one_line(error, 300)}); "
                    "for local data give --data TASK=FILE, or --include-path with a YAML file of its own"
                ) from error

    def measure(
        self, model_name: str, weights_hash: str, load_model: Callable[[], EvaluatedModel], cache: ResultCache
    ) -> list[ResultRow]:
        """Return every task's metrics of one model. `load_model` is called only for replies that the cache lacks."""
        model = _make_lm_adapter(load_model, weights_hash, cache, self.seed)
        results = self._lm_eval.simple_evaluate(
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
        return list(iter_harness_rows(results, model_name))


def _write_local_task(yaml_path: Path | None, name: str, source: Path, folder: Path) -> str:
    """Write a YAML file that includes a task and replaces its data by local rows. Returns its path."""
    if yaml_path is None:
        raise InputError(f"--data {name}={source}: the task {name} has no YAML file to be given other data")
    rows = load_task_rows(source)
    rows_by_split = {
        "train": [row for row in rows if row.get("split") == "train"],
        "validation": [row for row in rows if row.get("split") != "train"],
    }
    files = {}
    for split, split_rows in rows_by_split.items():
        if split_rows:
            write_text_atomic(
                folder / f"{name}-{split}.jsonl",
                (format_json_line({k: v for k, v in row.items() if k != "split"}) for row in split_rows),
            )
            files[split] = str(folder / f"{name}-{split}.jsonl")
    splits = {
        "training_split": "train" if "train" in files else None,
        "validation_split": "validation",
        "test_split": None,
    }
    config = {
        "include": str(yaml_path),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
    }
    write_text_atomic(
        folder / f"{name}.yaml", format_json_line(config | splits | {"fewshot_split": splits["training_split"]})
    )  # JSON is YAML
    return str(folder / f"{name}.yaml")


def iter_harness_rows(results: Mapping[str, Any], model: str) -> Iterator[ResultRow]:
    """Yield the harness's results as rows: evaluation `harness/TASK`, the metric, and the filter (if any) as condition."""
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

    def __init__(
        self, load_model: Callable[[], EvaluatedModel], weights_hash: str, cache: ResultCache, seed: int
    ) -> None:
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

        pairs = [[list(before), list(after)] for _, before, after in requests]
        results = self.result_cache.get_or_compute(
            self.weights_hash, pairs, {"asked": "log-probability"}, compute, title="log-probabilities"
        )
        return [(float(total), bool(greedy)) for total, greedy in results]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
        """Return the log-probability of whole texts, in disjoint windows if they exceed the context."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        windows: list[tuple[None, list[int], list[int]]] = []
        counts = []
        max_length = context_length(self.load_model().lm)
        for request in requests:
            tokens = self.tok_encode(request.args[0])
            token_windows = get_rolling_token_windows(
                token_list=tokens, prefix_token=self.prefix_token_id, max_seq_len=max_length, context_len=1
            )
            disjoint_windows = [(None, *make_disjoint_window(part)) for part in token_windows]
            windows += disjoint_windows
            counts.append(len(disjoint_windows))
        sums = iter(self._loglikelihood_tokens(windows))
        return [sum(next(sums)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
        continuations: dict[int, str] = {}
        groups: dict[tuple[Any, ...], list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(parse_generation_args(request.args[1]), []).append(index)
        for generation_args, indices in groups.items():
            settings = dict(zip(("until", "max_tokens", "temperature", "top_p"), generation_args, strict=True)) | {
                "seed": self.seed
            }

            def compute(texts: list[Any], seed: int, generation_args: tuple[Any, ...] = generation_args) -> list[str]:
                return generate_until_stop(self.load_model(), texts, generation_args, seed)

            texts = [requests[index].args[0] for index in indices]
            values = self.result_cache.get_or_compute(
                self.weights_hash, texts, settings, compute, title="continuations"
            )
            continuations |= dict(zip(indices, values, strict=True))
        return [continuations[index] for index in range(len(requests))]


def _make_lm_adapter(load_model: Callable[[], EvaluatedModel], weights_hash: str, cache: ResultCache, seed: int) -> Any:
    from lm_eval.api.model import TemplateLM

    return type("Model", (_LMAdapter, TemplateLM), {})(load_model, weights_hash, cache, seed)


@torch.no_grad()
def _token_pair_logps(lm: Any, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
    """Return (log-probability, whether it is greedy) of the continuation of each (context, continuation) pair of tokens.

    A pair that is too long loses its beginning. The last token is never an input, so context length + 1 tokens fit.
    """
    max_length = context_length(lm)
    fitting_indices = [
        index
        for index, (context_tokens, continuation_tokens) in enumerate(pairs)
        if len(context_tokens) + len(continuation_tokens) <= max_length
    ]
    results = dict(
        zip(
            fitting_indices,
            completion_logps_and_greedy(lm, [TokenizedExample(*pairs[index]) for index in fitting_indices]),
            strict=True,
        )
    )
    for index, (context_tokens, continuation_tokens) in enumerate(pairs):
        if index not in results:
            tokens = torch.tensor([*context_tokens, *continuation_tokens][-(max_length + 1) :], device=lm.device)
            logits = lm(tokens[None, :-1]).logits[0, -len(continuation_tokens) :]
            targets = tokens[-len(continuation_tokens) :]
            logp = functional.token_logp(logits, targets).double()
            results[index] = (float(logp.sum()), bool(is_argmax(logits, targets).all()))
    return [results[index] for index in range(len(pairs))]


def parse_generation_args(gen_kwargs: Mapping[str, Any]) -> tuple[tuple[str, ...], int, float, float]:
    """Return (stop strings, maximum tokens, temperature, top_p) of a generation request."""
    stops = gen_kwargs.get("until") or ()
    max_tokens = gen_kwargs.get("max_gen_toks", gen_kwargs.get("max_new_tokens", _DEFAULT_MAX_TOKENS))
    temperature = (
        float(gen_kwargs.get("temperature", 1.0))
        if gen_kwargs.get("do_sample", float(gen_kwargs.get("temperature", 0.0)) > 0)
        else 0.0
    )
    return (
        (stops,) if isinstance(stops, str) else tuple(stops),
        int(max_tokens),
        temperature,
        float(gen_kwargs.get("top_p", 1.0)),
    )


def generate_until_stop(
    model: EvaluatedModel, texts: Sequence[str], generation_args: tuple[Any, ...], seed: int
) -> list[str]:
    """Continue texts and cut each continuation before its first stop string."""
    stops, max_tokens, temperature, top_p = generation_args
    token_limit = min(max_tokens, context_length(model.lm) // 2)
    truncated_texts = [truncate_to_context(model, text, token_limit) for text in texts]
    continuations = continue_text(
        model.lm,
        model.tokenizer,
        truncated_texts,
        max_tokens=token_limit,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        stop=None,
    )
    stopped_texts = []
    for text, _ in continuations:
        for stop in filter(None, stops):
            text = text.partition(stop)[0]
        stopped_texts.append(text)
    return stopped_texts
