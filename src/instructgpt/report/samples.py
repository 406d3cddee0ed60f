"""Completions side by side: what every model wrote for the same prompts, and what PPO wrote while it learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from statistics import fmean
from typing import Any

from instructgpt.evaluate.metrics.preference import use_case
from instructgpt.records import USE_CASES, Ranking
from instructgpt.report.naming import colour, in_order, model_name, spoken
from instructgpt.report.section import Sample, Shown

LONGEST = 1_200  # characters shown of one text


def side_by_side(rankings: Sequence[Ranking], use_cases: Mapping[str, str], count: int = 12) -> tuple[Shown, ...]:
    """A few prompts, spread over the use cases, with each model's completion and a note; rankings without models are left out."""
    by_prompt: dict[str, list[Ranking]] = {}
    for ranking in rankings:
        if ranking.models is not None:
            by_prompt.setdefault(ranking.prompt, []).append(ranking)
    cases: dict[str, list[str]] = {}
    for prompt, ranked in by_prompt.items():
        cases.setdefault(use_case(ranked[0], use_cases) or "", []).append(prompt)
    order = [case for case in USE_CASES if case in cases] + sorted(set(cases) - set(USE_CASES))
    turns = zip_longest(*(cases[case] for case in order))
    chosen = [(case, prompt) for turn in turns for case, prompt in zip(order, turn, strict=True) if prompt is not None][:count]
    chosen.sort(key=lambda each: order.index(each[0]))
    return tuple(Shown(cut(prompt), spoken(case), _samples(by_prompt[prompt])) for case, prompt in chosen)


def _samples(rankings: Sequence[Ranking]) -> tuple[Sample, ...]:
    """Each model's completion with its mean rating, or its mean rank where nobody gave ratings, in the paper's order of models."""
    texts: dict[str, str] = {}
    ratings: dict[str, list[int]] = {}
    ranks: dict[str, list[int]] = {}
    for ranking in rankings:
        for place, model in enumerate(ranking.models or ()):
            texts.setdefault(model, ranking.completions[place])
            if ranking.completions[place] == texts[model]:
                ranks.setdefault(model, []).append(ranking.ranks[place])
                if ranking.ratings is not None:
                    ratings.setdefault(model, []).append(ranking.ratings[place])

    def note(model: str) -> str:
        given = ratings.get(model) or ranks[model]
        mean = f"{fmean(given):.1f} of 7" if model in ratings else f"rank {fmean(given):.2g} of {len(rankings[0].ranks)}"
        return mean + (f", {len(given)} labelers" if len(given) > 1 else "")

    return tuple(Sample(model_name(model), colour(model), cut(texts[model]), (note(model),)) for model in in_order(texts))


def over_time(samples: Sequence[Mapping[str, Any]], stage: str, count: int = 6) -> tuple[Shown, ...]:
    """What a policy wrote at the start, in the middle and at the end of PPO, with score, KL and total."""
    written = [each for each in samples if isinstance(each.get("prompt"), str) and isinstance(each.get("completion"), str)]
    written.sort(key=lambda each: each.get("step") or 0)
    places = dict.fromkeys(round(i * (len(written) - 1) / max(count - 1, 1)) for i in range(count)) if written else {}
    return tuple(_shown(written[place], stage) for place in places)


def _shown(sample: Mapping[str, Any], stage: str) -> Shown:
    numbers = [f"{name} {sample[name]:+.2f}" for name in ("score", "kl", "total") if isinstance(sample.get(name), int | float)]
    cut_off = ["cut off"] if sample.get("finish") == "length" else []
    text = Sample(model_name(stage), colour(stage), cut(sample["completion"]), tuple(numbers + cut_off))
    return Shown(cut(sample["prompt"]), f"step {sample.get('step', '?')}", (text,))


def cut(text: str, longest: int = LONGEST) -> str:
    """A text of a length that can be read, and how much was left out."""
    return text if len(text) <= longest else f"{text[:longest]} … ({len(text) - longest:,} characters more)"
