"""Counters in Prometheus' text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from instructgpt.serve.engine import Engine

PREFIX = "instructgpt"


def format_metrics(requests: Mapping[tuple[str, int], int], engines: Mapping[str, Engine]) -> str:
    """Return requests by path and status, and the engines' counters and gauges by model."""
    lines = _family(
        "http_requests_total",
        "counter",
        "Requests by path and status.",
        [(f'path="{path}",status="{status}"', count) for (path, status), count in sorted(requests.items())],
    )
    counters = {
        "prompt_tokens_total": "Prompt tokens of the requests.",
        "completion_tokens_total": "Tokens sampled.",
        "completions_total": "Completions finished.",
        "prefills_total": "Prompts computed.",
        "steps_total": "Steps of the batch.",
        "cancelled_total": "Completions whose client has gone.",
        "failed_total": "Requests that ended with an error or the time limit.",
    }
    for name, text in counters.items():
        values = [
            (_label(model), getattr(engine.stats, name.removesuffix("_total"))) for model, engine in engines.items()
        ]
        lines += _family(name, "counter", text, values)
    running = [(_label(model), engine.num_running) for model, engine in engines.items()]
    waiting = [(_label(model), engine.num_waiting) for model, engine in engines.items()]
    lines += _family("completions_running", "gauge", "Completions that are sampled now.", running)
    lines += _family("completions_waiting", "gauge", "Completions that wait for a slot.", waiting)
    return "\n".join(lines) + "\n"


def _label(model: str) -> str:
    escaped = model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'model="{escaped}"'


def _family(name: str, kind: str, text: str, values: Iterable[tuple[str, int]]) -> list[str]:
    head = [f"# HELP {PREFIX}_{name} {text}", f"# TYPE {PREFIX}_{name} {kind}"]
    return [*head, *(f"{PREFIX}_{name}{{{labels}}} {value}" for labels, value in values)]


RequestCounts = Counter[tuple[str, int]]
