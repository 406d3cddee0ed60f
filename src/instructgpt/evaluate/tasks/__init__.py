"""The paper's automatic evaluations on public data, one file each, all of one shape. Adding one: docs/evaluate.md."""

from __future__ import annotations

from instructgpt.evaluate.tasks import bbq, crows_pairs, real_toxicity, rte, squad, sst2, truthfulqa, winogender
from instructgpt.evaluate.tasks.shape import Evaluation

EVALUATIONS: dict[str, Evaluation] = {
    module.EVALUATION.name: module.EVALUATION for module in (truthfulqa, real_toxicity, winogender, crows_pairs, bbq, squad, rte, sst2)
}
"""By name, in the order of the paper's Table 14."""
