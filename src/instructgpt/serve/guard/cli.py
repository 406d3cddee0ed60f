"""The command `serve guard`.

instructgpt serve guard curve  --guard guard.yaml --data labeled_prompts.jsonl
instructgpt serve guard counts --guard guard.yaml
instructgpt serve guard card   --guard guard.yaml --model runs/demo/ppo_ptx
"""

from __future__ import annotations

import math

from instructgpt.errors import InputError
from instructgpt.io import write_text_atomic
from instructgpt.run.use_policy import replace_use_policy
from instructgpt.serve.configs import ServeGuardConfig
from instructgpt.serve.guard.checking import GuardSide
from instructgpt.serve.guard.counts import GUARD_EVENTS, read_guard_counts
from instructgpt.serve.guard.curve import CurvePoint, curve_points, guard_auc, read_labeled_texts, score_texts
from instructgpt.serve.guard.scorers import load_guard_scorer
from instructgpt.serve.guard.settings import GuardFileSettings, GuardSettings, read_guard_file
from instructgpt.statistics.intervals import Estimate


def main(config: ServeGuardConfig) -> None:
    """Print the curve or the counts, or write the policy into model cards.

    Raises:
        InputError: the guard file, or what it needs, is missing or wrong.
    """
    settings = read_guard_file(config.guard)
    if config.action == "counts":
        _print_counts(settings)
    elif config.action == "card":
        _write_cards(settings, config)
    else:
        _print_curves(settings, config)


def _print_counts(settings: GuardFileSettings) -> None:
    rows = read_guard_counts(settings.counts_path)
    if not rows:
        print(f"{settings.counts_path}: nothing counted yet")
        return
    print("\t".join(("day", "guard", "reads", "use case", *GUARD_EVENTS)))
    for row in rows:
        head = (row["day"], row["guard"], row["reads"], row["use_case"] or "-")
        print("\t".join((*head, *(str(row[event]) for event in GUARD_EVENTS))))


def _write_cards(settings: GuardFileSettings, config: ServeGuardConfig) -> None:
    if not config.model:
        raise InputError("serve guard card: --model is required: the directories whose README.md gets the policy")
    for folder in config.model:
        if not (folder / "config.json").is_file():
            raise InputError(f"--model {folder}: not a model directory (no config.json)")
    for folder in config.model:
        path = folder / "README.md"
        card = path.read_text(encoding="utf-8") if path.exists() else f"# {folder.name}\n"
        write_text_atomic(path, replace_use_policy(card, settings.policy))
        print(f"{path}: policy written")


def _print_curves(settings: GuardFileSettings, config: ServeGuardConfig) -> None:
    if not settings.guards:
        raise InputError(f"--guard {settings.path}: has no guards")
    if not config.data:
        raise InputError("serve guard curve: --data is required: labeled texts")
    for guard in settings.guards:
        scorer = load_guard_scorer(guard, settings.path.parent, settings.timeout_s, config.device)
        side: GuardSide = "completion" if guard.reads == "completion" else "prompt"
        texts = read_labeled_texts(config.data, side, config.skip_bad)
        scores = score_texts(scorer, texts)
        num_unscored = sum(map(math.isnan, scores))
        num_harmful = sum(text.is_harmful for text in texts)
        print(
            f"\n{guard.name}: {scorer.identity}; {num_harmful} harmful and {len(texts) - num_harmful} safe {side}s",
            end="",
        )
        print(
            f"; AUC {guard_auc(guard, scores, texts):.3f}"
            + (f"; {num_unscored} without a score" if num_unscored else "")
        )
        print("threshold\tharmful caught\tsafe flagged")
        for point in curve_points(guard, scores, texts):
            print(_format_point(guard, point))
    print("\n* the threshold of the file. Shares with 95 % intervals, for texts like these only")


def _format_point(guard: GuardSettings, point: CurvePoint) -> str:
    mark = " *" if point.threshold == guard.threshold else ""
    shares = f"{_format_share(point.caught)}\t{_format_share(point.false_alarms)}"
    return f"{guard.format_threshold(point.threshold)}{mark}\t{shares}"


def _format_share(share: Estimate) -> str:
    numbers = (share.value, share.low, share.high)
    value, low, high = (math.nan if number is None else 100 * number for number in numbers)
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"
