"""The paper's automatic evaluations on public data, one task per file. How to add one: docs/reference/evaluate.md."""

from __future__ import annotations

from instructgpt.evaluate.tasks import (
    arc_easy,
    bbq,
    cnn_dm,
    crows_pairs,
    drop,
    gsm8k,
    hellaswag,
    piqa,
    quac,
    real_toxicity,
    real_toxicity_sampled,
    refusal,
    rte,
    squad,
    sst2,
    tldr,
    truthfulqa,
    winogender,
    winogrande,
    wmt15,
    wsc,
)
from instructgpt.evaluate.tasks.base import EvalTask

EVAL_TASKS: dict[str, EvalTask] = {
    module.TASK.name: module.TASK
    for module in (
        winogender,
        crows_pairs,
        bbq,
        real_toxicity,
        real_toxicity_sampled,
        truthfulqa,
        hellaswag,
        wsc,
        rte,
        sst2,
        quac,
        squad,
        drop,
        wmt15,
        cnn_dm,
        tldr,
        arc_easy,
        piqa,
        winogrande,
        gsm8k,
        refusal,
    )
}
"""Tasks by name, in the order of the paper's Table 14, then those the paper does not have."""
