"""The paper's automatic evaluations on public data, one file each, all of one shape. Adding one: docs/evaluate.md."""

from __future__ import annotations

from instructgpt.evaluate.tasks import (
    bbq,
    cnn_dm,
    crows_pairs,
    drop,
    hellaswag,
    quac,
    real_toxicity,
    real_toxicity_sampled,
    rte,
    squad,
    sst2,
    tldr,
    truthfulqa,
    winogender,
    wmt15,
    wsc,
)
from instructgpt.evaluate.tasks.shape import Evaluation

EVALUATIONS: dict[str, Evaluation] = {
    module.EVALUATION.name: module.EVALUATION
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
    )
}
"""By name, in the order of the paper's Table 14."""
