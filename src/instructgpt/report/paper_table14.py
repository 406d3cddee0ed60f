"""Numbers of the paper's Table 14, for models named as in its published samples.

Where the paper contradicts itself the table holds what fits its samples: TruthfulQA's rows "instruction" and "QA +
instruct" are exchanged, and TL;DR is missing because its row copies CNN/DM's (docs/explanation/choices.md).
"""

from __future__ import annotations

from collections.abc import Mapping

from instructgpt.results import ResultRow

_PAPER_SIZES = ("xl", "6b", "175b")
_PAPER_FAMILIES = ("gpt", "sft", "ppo-noptx", "ppo-ptx")
PAPER_MODELS = tuple(f"{family}-{size}" for family in _PAPER_FAMILIES for size in _PAPER_SIZES)
"""Columns of the table, named as in the published samples."""

_PERCENT_EVALUATIONS = ("quac", "squad", "drop")
"""Evaluations that the paper prints in percent."""

PAPER_TABLE_14: Mapping[tuple[str, str, str], str] = {
    ("winogender", "entropy_bits", "none"): ".750 .721 .735  .583 .535 .503  .698 .587 .618  .760 .719 .737",
    ("winogender", "entropy_bits", "respectful"): ".774 .753 .796  .561 .446 .479  .644 .562 .527  .608 .585 .696",
    ("winogender", "entropy_bits", "biased"): ".760 .773 .783  .561 .516 .540  .706 .567 .564  .676 .543 .690",
    ("crows_pairs", "entropy_bits", "none"): ".448 .430 .410  .356 .326 .241  .355 .361 .326  .448 .434 .413",
    ("crows_pairs", "entropy_bits", "respectful"): ".419 .413 .362  .302 .260 .204  .281 .258 .270  .310 .273 .243",
    ("crows_pairs", "entropy_bits", "biased"): ".420 .419 .353  .305 .252 .187  .287 .288 .223  .314 .254 .205",
    ("real_toxicity", "mean_toxicity", "none"): ".228 .229 .231  .198 .211 .211  .213 .214 .228  .228 .227 .234",
    ("real_toxicity", "mean_toxicity", "respectful"): ".211 .232 .233  .196 .196 .199  .198 .176 .205  .179 .204 .196",
    ("real_toxicity", "mean_toxicity", "biased"): ".250 .261 .285  .236 .250 .256  .254 .382 .427  .263 .512 .400",
    ("truthfulqa", "truthful", "qa"): ".312 .220 .284  .324 .436 .515  .546 .586 .755  .297 .476 .712",
    ("truthfulqa", "truthful", "instruction_qa"): ".340 .414 .570  .360 .756 .665  .634 .928 .879  .355 .733 .815",
    ("truthfulqa", "truthful", "instruction"): ".335 .348 .438  .517 .659 .852  .807 .760 .944  .322 .494 .610",
    ("truthfulqa", "truthful_and_informative", "qa"): ".193 .186 .251  .267 .253 .271  .524 .574 .752  .285 .464 .689",
    (
        "truthfulqa",
        "truthful_and_informative",
        "instruction_qa",
    ): ".212 .212 .226  .282 .213 .257  .559 .187 .382  .339 .350 .494",
    (
        "truthfulqa",
        "truthful_and_informative",
        "instruction",
    ): ".218 .267 .242  .288 .319 .206  .789 .704 .588  .242 .399 .315",
    ("hellaswag", "accuracy", "zero_shot"): ".549 .673 .781  .528 .672 .753  .507 .646 .743  .552 .690 .807",
    ("hellaswag", "accuracy", "few_shot"): ".550 .677 .791  .516 .657 .741  .530 .671 .759  .559 .694 .820",
    ("wsc", "accuracy", "zero_shot"): ".567 .635 .740  .615 .606 .654  .663 .654 .683  .692 .587 .731",
    ("wsc", "accuracy", "few_shot"): ".587 .654 .798  .615 .625 .779  .625 .596 .654  .644 .673 .788",
    ("rte", "accuracy", "zero_shot"): ".527 .617 .563  .487 .516 .570  .480 .708 .704  .538 .657 .668",
    ("rte", "accuracy", "few_shot"): ".585 .682 .614  .574 .657 .700  .606 .585 .711  .545 .697 .765",
    ("sst2", "accuracy", "zero_shot"): ".592 .616 .898  .873 .888 .907  .817 .820 .920  .812 .901 .900",
    ("sst2", "accuracy", "few_shot"): ".842 .930 .944  .909 .933 .936  .794 .880 .944  .838 .923 .938",
    ("quac", "f1", "zero_shot"): "32.13 38.19 42.55  34.52 41.19 45.22  29.02 37.64 34.52  35.04 37.35 41.60",
    ("quac", "f1", "few_shot"): "36.02 41.78 45.38  35.95 43.13 48.77  31.81 40.63 36.00  39.40 42.42 46.99",
    ("squad", "f1", "zero_shot"): "51.97 58.66 64.30  36.88 46.53 57.67  45.37 47.42 43.68  45.46 47.23 59.85",
    ("squad", "f1", "few_shot"): "58.86 62.33 69.75  46.62 53.91 65.90  48.11 52.34 51.95  58.33 63.78 69.93",
    ("drop", "f1", "zero_shot"): "17.68 19.96 27.53  13.29 13.23 15.79  14.70 12.34 13.08  14.71 10.64 15.23",
    ("drop", "f1", "few_shot"): "25.43 30.08 35.27  23.84 30.99 35.85  21.61 27.11 27.78  23.89 29.39 33.34",
    ("wmt15", "bleu", "zero_shot"): "30.65 34.99 38.92  25.56 33.25 36.90  19.85 25.22 24.16  25.77 30.41 34.28",
    ("wmt15", "bleu", "few_shot"): "31.37 35.49 39.93  24.73 31.76 35.07  21.65 29.96 26.58  27.67 33.56 36.76",
    ("cnn_dm", "rouge_l", "zero_shot"): ".182 .197 .196  .198 .235 .225  .218 .231 .227  .214 .231 .220",
}
"""(evaluation, metric, condition) -> a number for each of `PAPER_MODELS`;
tasks with one kind of prompt are `zero_shot`.
"""


EXCHANGED_ROWS = frozenset(
    ("truthfulqa", metric, condition)
    for metric in ("truthful", "truthful_and_informative")
    for condition in ("instruction_qa", "instruction")
)
"""Rows that the paper prints under each other's names."""


def table14_value(row: ResultRow) -> float | None:
    """Return Table 14's number on our scale; None if it has none."""
    numbers = PAPER_TABLE_14.get((row.evaluation, row.metric, row.condition or "zero_shot"))
    if numbers is None or row.model not in PAPER_MODELS:
        return None
    return float(numbers.split()[PAPER_MODELS.index(row.model)]) / (
        100 if row.evaluation in _PERCENT_EVALUATIONS else 1
    )
