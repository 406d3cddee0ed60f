"""Heads of groups of labelers: the shared head of a trained reward model and, for each group, an offset shrunk to 0.

    score of a group = (weights of the shared head + offset of the group) @ what the head reads at the last token

Only D numbers a group are fitted, and the loss is convex. How strongly offsets are shrunk is chosen by leaving out
labelers; the gain is measured on held-out labelers of the group, and is often none: groups agree on most pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instructgpt import functional
from instructgpt.data.packing import TokenizedExample
from instructgpt.data.rankings import RankedPrompt
from instructgpt.errors import InputError
from instructgpt.models.group_heads import GainVerdict, SavedGroupHead
from instructgpt.models.precision import compute_device
from instructgpt.models.reward_model import ScalarModel, load_reward_model
from instructgpt.statistics import intervals
from instructgpt.statistics.group_preferences import MIN_GROUP_SIZE, LabelerGroups, find_groups
from instructgpt.statistics.intervals import NO_ESTIMATE, SHARE, Estimate

SHRINKAGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Ridge penalties to choose from, on features of unit spread; no offset at all is a choice, too."""
_FOLDS = 5
_MAX_ITERATIONS = 200


@dataclass(frozen=True, slots=True)
class RankedFeatures:
    """One labeler's ranking of K completions, as the reward model sees them; `statistics` can read it."""

    prompt: int
    labeler: str | None
    group: str | None
    features: Tensor
    """(K, D) what the head reads at the last tokens."""
    scores: Tensor
    """(K,) of the shared head."""
    ranks: tuple[int, ...]
    completions: Sequence[int] = field(default=())
    models: None = None


@dataclass(frozen=True, slots=True)
class GroupHead:
    offset: Tensor
    """(D,); zeros where no offset predicts left-out labelers better."""
    shrinkage: float | None
    """The penalty; None: no offset."""

    def scores(self, ranking: RankedFeatures) -> Tensor:
        """Return the group's scores of the completions of a ranking, (K,)."""
        return ranking.scores + ranking.features.to(self.offset.dtype) @ self.offset


@dataclass(frozen=True, slots=True)
class GroupGain:
    """Pair accuracy on held-out labelers of the group."""

    shared: Estimate
    conditioned: Estimate
    gain: Estimate

    @property
    def verdict(self) -> GainVerdict:
        if self.gain.value is None:
            return "not measured"
        if self.gain.low is not None and self.gain.low > 0:
            return "helps"
        return "harms" if self.gain.high is not None and self.gain.high < 0 else "does not help"


@dataclass(frozen=True, slots=True)
class FittedGroup:
    """A group's head, with whom it was fitted and measured on."""

    name: str
    labelers: int
    head: GroupHead
    gain: GroupGain
    score_offset: float

    def to_saved(self) -> SavedGroupHead:
        return SavedGroupHead(
            weight_offset=tuple(self.head.offset.tolist()),
            score_offset=self.score_offset,
            shrinkage=self.head.shrinkage,
            verdict=self.gain.verdict,
        )

    def summary(self) -> dict[str, Any]:
        """Return what `run.json` keeps."""
        gain = {name: asdict(getattr(self.gain, name)) for name in ("shared", "conditioned", "gain")}
        return {"labelers": self.labelers, "shrinkage": self.head.shrinkage, **gain, "verdict": self.gain.verdict}

    def __str__(self) -> str:
        """Return the line that is printed."""
        shrinkage = "no offset" if self.head.shrinkage is None else f"shrinkage {self.head.shrinkage:g}"
        fitted = f"group {self.name}: head of {self.labelers} labelers, {shrinkage}"
        shared, conditioned, gain = self.gain.shared, self.gain.conditioned, self.gain.gain
        if gain.value is None or shared.value is None or conditioned.value is None:
            reason = f"fewer than {MIN_GROUP_SIZE} held-out labelers of it ranked validation prompts"
            return f"{fitted}; its gain is not measured: {reason}"
        interval = "" if gain.low is None or gain.high is None else f" [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
        accuracy = f"pair accuracy {shared.value:.3f} with the shared head, {conditioned.value:.3f} with its own"
        verdict = f"{100 * gain.value:+.1f} points{interval} on {shared.n} pairs, {self.gain.verdict}"
        return f"{fitted}; on held-out labelers of it {accuracy}: {verdict}"


def require_groups(prompts: Sequence[RankedPrompt], report: Callable[[str], None]) -> LabelerGroups:
    """Return the groups of at least five labelers who decided a pair, and report what is left out.

    Raises:
        InputError: there is no such group.
    """
    none = torch.empty(0)
    rankings = [
        RankedFeatures(index, order.labeler, order.group, none, none, order.ranks)
        for index, prompt in enumerate(prompts)
        for order in prompt.labeler_ranks
    ]
    groups = find_groups(rankings)
    if not groups.names:
        missing = f"no group of {MIN_GROUP_SIZE} labelers or more ranked training prompts"
        raise InputError(f"--groups: {missing}; rankings name it in 'group', beside 'labeler'")
    if groups.has_small_groups:
        report(f"groups of fewer than {MIN_GROUP_SIZE} training labelers get no head")
    if groups.contradictory:
        report(f"{groups.contradictory} labelers name several groups, so they count in none")
    if groups.anonymous:
        report(f"{groups.anonymous} rankings name a group but no labeler, so they count in none")
    return groups


def check_head(reward_model: ScalarModel) -> None:
    """Raise InputError where the reward model has no linear head to add offsets to."""
    if not reward_model.has_token_outputs:
        raise InputError("--groups: this family has no linear 'score' head at the last token; leave --groups out")


def fit_groups(
    reward_model: ScalarModel,
    training: Sequence[RankedPrompt],
    validation: Sequence[RankedPrompt],
    centering_examples: Sequence[TokenizedExample],
    shrinkage: float | None,
    report: Callable[[str], None],
) -> list[FittedGroup]:
    """Fit a head for each group of training labelers, and measure it on held-out labelers of the group.

    Args:
        reward_model: trained.
        training: their labelers fit.
        validation: their held-out labelers measure.
        centering_examples: completions whose average score becomes 0 for each group.
        shrinkage: the ridge penalty; None: chosen by leaving out labelers.
        report: prints a line.
    """
    fit_rankings = read_features(reward_model, training)
    heldout = [ranking for ranking in read_features(reward_model, validation, cohort="heldout") if ranking.group]
    groups, heldout_groups = find_groups(fit_rankings), find_groups(heldout)
    centering_scores, centering = reward_model.score_with_head_inputs(centering_examples)
    fitted = []
    for index, name in enumerate(groups.names):
        head = fit_group_head([r for r in fit_rankings if groups.members.get(r.labeler, -1) == index], shrinkage)
        members = {labeler for labeler, at in heldout_groups.members.items() if heldout_groups.names[at] == name}
        gain = measure_gain(head, [ranking for ranking in heldout if ranking.labeler in members])
        group_scores = centering_scores.double() + centering.double() @ head.offset
        score_offset = reward_model.offset + float(group_scores.mean())
        fitted.append(FittedGroup(name, groups.sizes[index], head, gain, score_offset))
        report(str(fitted[-1]))
    return fitted


def is_scored_by_groups(
    reward_model: ScalarModel,
    groups: Sequence[FittedGroup],
    examples: list[TokenizedExample],
    folder: Path,
    atol: float,
) -> bool:
    """Return whether the heads that were saved in `folder` give the scores of the fitted ones."""
    names = [group.name for group in groups]
    reloaded = load_reward_model(folder, compute_device(reward_model.model), names)
    saved = {names[0]: reloaded.score(examples)} if len(names) == 1 else reloaded.group_scores(examples)
    scores, inputs = reward_model.score_with_head_inputs(examples)
    outputs, inputs = scores.double() + reward_model.offset, inputs.double()
    return all(
        torch.allclose(
            saved[group.name].double(), outputs + inputs @ group.head.offset - group.score_offset, rtol=1e-4, atol=atol
        )
        for group in groups
    )


def read_features(
    reward_model: ScalarModel, prompts: Sequence[RankedPrompt], cohort: str | None = None
) -> list[RankedFeatures]:
    """Return every labeler's ranking, of one cohort or of all, as the reward model sees it."""
    examples = [example for prompt in prompts for example in prompt.examples]
    scores, features = reward_model.score_with_head_inputs(examples)
    rankings, start = [], 0
    for index, prompt in enumerate(prompts):
        rows = slice(start, start + len(prompt.examples))
        start = rows.stop
        rankings += [
            RankedFeatures(index, order.labeler, order.group, features[rows], scores[rows], order.ranks)
            for order in prompt.labeler_ranks
            if cohort is None or order.cohort == cohort
        ]
    return rankings


def fit_group_head(rankings: Sequence[RankedFeatures], shrinkage: float | None = None) -> GroupHead:
    """Fit the offset of one group on its training labelers' rankings.

    Args:
        rankings: of at least five labelers.
        shrinkage: the ridge penalty; None: that which predicts left-out labelers best.

    Raises:
        ValueError: fewer than five labelers decided a pair.
    """
    decided = [ranking for ranking in rankings if len(set(ranking.ranks)) > 1]
    labelers = list(dict.fromkeys(ranking.labeler for ranking in decided))
    if len(labelers) < MIN_GROUP_SIZE:
        raise ValueError(f"a group needs rankings of {MIN_GROUP_SIZE} labelers")
    if shrinkage is not None:
        return GroupHead(_RankingDesign(decided).fit_offset(shrinkage), shrinkage)
    fold_of = {labeler: index % _FOLDS for index, labeler in enumerate(labelers)}
    losses: dict[float | None, float] = dict.fromkeys((None, *SHRINKAGES), 0.0)
    for fold in range(_FOLDS):
        design = _RankingDesign([ranking for ranking in decided if fold_of[ranking.labeler] != fold])
        left_out = [ranking for ranking in decided if fold_of[ranking.labeler] == fold]
        left_out_design = _RankingDesign(left_out)
        for penalty in losses:
            losses[penalty] += float(left_out_design.loss(design.fit_offset(penalty))) * len(left_out)
    best = min(losses, key=lambda penalty: losses[penalty])
    return GroupHead(_RankingDesign(decided).fit_offset(best), best)


def measure_gain(head: GroupHead, heldout: Sequence[RankedFeatures]) -> GroupGain:
    """Compare the group's head with the shared one on pairs of held-out labelers of the group.

    Without five such labelers there is no number.
    """
    observations = [
        (ranking.prompt, ranking.labeler, shared, conditioned)
        for ranking in heldout
        for shared, conditioned in zip(
            _correct_pairs(ranking, ranking.scores),
            _correct_pairs(ranking, head.scores(ranking)),
            strict=True,
        )
    ]
    if len({labeler for _, labeler, _, _ in observations}) < MIN_GROUP_SIZE:
        return GroupGain(NO_ESTIMATE, NO_ESTIMATE, NO_ESTIMATE)
    prompts, labelers, shared, conditioned = (list(column) for column in zip(*observations, strict=True))
    return GroupGain(
        intervals.mean(shared, prompts, labelers, bounds=SHARE),
        intervals.mean(conditioned, prompts, labelers, bounds=SHARE),
        intervals.paired_difference(conditioned, shared, prompts, labelers, bounds=SHARE),
    )


def _correct_pairs(ranking: RankedFeatures, scores: Tensor) -> list[float]:
    index = torch.zeros(len(ranking.ranks), dtype=torch.long)
    correct: list[float] = functional.pair_accuracy(scores, index, torch.tensor(ranking.ranks)).tolist()
    return correct


class _RankingDesign:
    """Rankings of one group as tensors: N completions of all rankings, in double precision."""

    def __init__(self, rankings: Sequence[RankedFeatures]) -> None:
        sizes = torch.tensor([len(ranking.ranks) for ranking in rankings])
        self.index = torch.repeat_interleave(torch.arange(len(rankings)), sizes)
        self.ranks = torch.tensor([rank for ranking in rankings for rank in ranking.ranks])
        self.features = torch.cat([ranking.features for ranking in rankings]).double()
        self.scores = torch.cat([ranking.scores for ranking in rankings]).double()
        sums = torch.zeros(len(rankings), self.features.shape[1], dtype=torch.float64)
        means = sums.index_add(0, self.index, self.features) / sizes[:, None]
        spread = (self.features - means[self.index]).square().mean(0).sqrt()
        self.spread = torch.where(spread > 1e-8 * spread.max(), spread, torch.ones_like(spread))
        """(D,) standard deviation of features within rankings."""

    def loss(self, offset: Tensor) -> Tensor:
        """Return the mean loss of equation 1 over rankings, with the group's scores."""
        return functional.ranking_losses(self.scores + self.features @ offset, self.index, self.ranks).mean()

    def fit_offset(self, shrinkage: float | None) -> Tensor:
        """Minimize loss + shrinkage / 2 · |offset · spread|². Without shrinkage the offset is 0."""
        scaled_offset = torch.zeros_like(self.spread, requires_grad=True)
        if shrinkage is None:
            return scaled_offset.detach()
        optimizer = torch.optim.LBFGS(
            [scaled_offset], max_iter=_MAX_ITERATIONS, line_search_fn="strong_wolfe", tolerance_grad=1e-9
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.loss(scaled_offset / self.spread) + shrinkage / 2 * scaled_offset.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        return (scaled_offset / self.spread).detach()
