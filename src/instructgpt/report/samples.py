"""Samples side by side: completions of all models for the same prompts, and of PPO during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from statistics import fmean
from typing import Any

from instructgpt.evaluate.metrics.preference import ranking_use_case
from instructgpt.records import USE_CASES, Ranking
from instructgpt.report.language import translate
from instructgpt.report.naming import humanize, model_color, model_name, sort_models
from instructgpt.report.section import ReportSample, SampleGroup

_MAX_TEXT_CHARS = 1_200  # characters shown of one text


def select_sample_groups(
    rankings: Sequence[Ranking], use_cases: Mapping[str, str], count: int = 12
) -> tuple[SampleGroup, ...]:
    """Select a few prompts over all use cases, with each model's completion and a note;
    rankings without models are skipped.
    """
    rankings_by_prompt: dict[str, list[Ranking]] = {}
    for ranking in rankings:
        if ranking.models is not None:
            rankings_by_prompt.setdefault(ranking.prompt, []).append(ranking)
    prompts_by_use_case: dict[str, list[str]] = {}
    for prompt, prompt_rankings in rankings_by_prompt.items():
        prompts_by_use_case.setdefault(ranking_use_case(prompt_rankings[0], use_cases) or "", []).append(prompt)
    use_case_order = [use_case_name for use_case_name in USE_CASES if use_case_name in prompts_by_use_case] + sorted(
        set(prompts_by_use_case) - set(USE_CASES)
    )
    rounds = zip_longest(*(prompts_by_use_case[use_case_name] for use_case_name in use_case_order))
    selected = [
        (use_case_name, prompt)
        for round_prompts in rounds
        for use_case_name, prompt in zip(use_case_order, round_prompts, strict=True)
        if prompt is not None
    ][:count]
    selected.sort(key=lambda each: use_case_order.index(each[0]))
    return tuple(
        SampleGroup(truncate_text(prompt), humanize(use_case_name), _model_samples(rankings_by_prompt[prompt]))
        for use_case_name, prompt in selected
    )


def _model_samples(rankings: Sequence[Ranking]) -> tuple[ReportSample, ...]:
    """Return each model's completion with its mean rating, or mean rank without ratings, in the paper's order."""
    texts: dict[str, str] = {}
    ratings: dict[str, list[float]] = {}
    ranks: dict[str, list[int]] = {}
    for ranking in rankings:
        for index, model in enumerate(ranking.models or ()):
            texts.setdefault(model, ranking.completions[index])
            if ranking.completions[index] == texts[model]:
                ranks.setdefault(model, []).append(ranking.ranks[index])
                if ranking.scaled_ratings is not None:
                    ratings.setdefault(model, []).append(ranking.scaled_ratings[index])

    def format_note(model: str) -> str:
        ranks_or_ratings = ratings.get(model) or ranks[model]
        mean = (
            translate("samples.rating", mean=f"{fmean(ranks_or_ratings):.1f}")
            if model in ratings
            else translate("samples.rank", mean=f"{fmean(ranks_or_ratings):.2g}", count=len(rankings[0].ranks))
        )
        return mean + (translate("samples.labelers", count=len(ranks_or_ratings)) if len(ranks_or_ratings) > 1 else "")

    return tuple(
        ReportSample(model_name(model), model_color(model), truncate_text(texts[model]), (format_note(model),))
        for model in sort_models(texts)
    )


def select_training_samples(
    samples: Sequence[Mapping[str, Any]], stage: str, count: int = 6
) -> tuple[SampleGroup, ...]:
    """Select samples from the start, middle and end of PPO, with score, KL and total."""
    valid_samples = [
        sample
        for sample in samples
        if isinstance(sample.get("prompt"), str) and isinstance(sample.get("completion"), str)
    ]
    valid_samples.sort(key=lambda each: each.get("step") or 0)
    indices = (
        dict.fromkeys(round(i * (len(valid_samples) - 1) / max(count - 1, 1)) for i in range(count))
        if valid_samples
        else {}
    )
    return tuple(_to_sample_group(valid_samples[index], stage) for index in indices)


def _to_sample_group(sample: Mapping[str, Any], stage: str) -> SampleGroup:
    notes = [
        f"{translate(f'columns.{name}')} {sample[name]:+.2f}"
        for name in ("score", "kl", "total")
        if isinstance(sample.get(name), int | float)
    ]
    length_notes = [translate("samples.cut_off")] if sample.get("finish") == "length" else []
    report_sample = ReportSample(
        model_name(stage), model_color(stage), truncate_text(sample["completion"]), tuple(notes + length_notes)
    )
    return SampleGroup(
        truncate_text(sample["prompt"]), translate("samples.step", step=sample.get("step", "?")), (report_sample,)
    )


def truncate_text(text: str, max_chars: int = _MAX_TEXT_CHARS) -> str:
    return (
        text
        if len(text) <= max_chars
        else translate("samples.truncated", text=text[:max_chars], count=f"{len(text) - max_chars:,}")
    )
