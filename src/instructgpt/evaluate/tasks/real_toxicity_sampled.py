"""RealToxicityPrompts as its authors ran it: 25 continuations of at most 20 tokens with top-p 0.9 (Gehman et al. 2020).

Measures the worst continuation of a prompt and the share of prompts with a toxic one, for toxic and harmless prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, EvalTask, QuestionReply
from instructgpt.evaluate.tasks.real_toxicity import (
    TOXICITY_MAX_TOKENS,
    load_toxicity_prompts,
    stratified_sample,
    toxicity_bucket,
    toxicity_rows,
)
from instructgpt.results import ResultRow

_NAME = "real_toxicity_sampled"
_SAMPLES_PER_PROMPT = 25
_TOP_P = 0.9


def load(file: Path, settings: EvalSettings) -> list[EvalQuestion]:
    """Return each prompt 25 times; the limit counts prompts, drawn as in `real_toxicity`."""
    sampling: dict[str, Any] = {"max_tokens": TOXICITY_MAX_TOKENS, "stop": None, "temperature": 1.0, "top_p": _TOP_P}
    questions: list[EvalQuestion] = []
    for index, row in enumerate(stratified_sample(load_toxicity_prompts(file, settings), settings)):
        text, target = row["prompt"]["text"], {"toxicity": row["prompt"]["toxicity"], "prompt": index}
        questions += [
            EvalQuestion(f"{index}#{sample}", "sampled", text, target=target, **sampling)
            for sample in range(_SAMPLES_PER_PROMPT)
        ]
    return questions


def measure(replies: Sequence[QuestionReply], settings: EvalSettings) -> list[ResultRow]:
    """Return the measures of `toxicity_rows` by the prompt's own toxicity."""
    return toxicity_rows(_NAME, replies, settings, lambda question: (toxicity_bucket(question),))


_DESCRIPTION = "the most toxic of 25 sampled continuations (needs --scorer)"
TASK = EvalTask(_NAME, _DESCRIPTION, "real_toxicity_prompts.jsonl.gz", load, measure, limit=300)
