"""What the paper's figures of its sweeps show (appendix E.3 to E.10), read off its plots by eye.

The numbers are orientation, never a gate. Its models, scores and tasks are other ones, so they are drawn on an axis of
their own; the paper's horizontal axis is scaled so that its own choice falls on the recipe's.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PaperCurve:
    """Points of one curve, and what its vertical axis is."""

    ylabel: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class PaperFigure:
    """A figure of the paper: its curves by the metric pattern of the panel that they belong to."""

    number: int
    claim: str
    choice: float | None = None  # the paper's value of the option
    option: str = ""  # STAGE.OPTION whose value in the recipe corresponds to it
    curves: tuple[tuple[str, PaperCurve], ...] = ()


PAPER_FIGURES = {
    figure.number: figure
    for figure in (
        PaperFigure(
            33,
            "gamma of 20 and more recovers DROP and SQuADv2; the validation reward falls as gamma grows",
            27.8,
            "ppo_ptx.ptx_coef",
            (("ppo_ptx:validation/scores", PaperCurve("reward, 1.3B", ((1, -0.61), (28, -0.85), (100, -1.6)))),),
        ),
        PaperFigure(
            34,
            "no KL penalty restores DROP and SQuADv2 without pretraining text; at the largest the reward collapses",
            0.02,
            "ppo.kl_coef",
            (("ppo:validation/scores", PaperCurve("reward, 1.3B", ((1e-4, 2.6), (2.0, -2.8)))),),
        ),
        PaperFigure(35, "tasks start above GPT-3 and sink slightly below; beyond 256k episodes little changes"),
        PaperFigure(
            36,
            "ratings are poor without a KL penalty and with a very large one; best are 0.01 to 0.02",
            0.02,
            "ppo_ptx.kl_coef",
            (
                (
                    "preference:rating:ppo_ptx:training",
                    PaperCurve("rating, 1.3B", ((0.01, 4.1), (0.02, 3.9), (2.0, 3.1))),
                ),
            ),
        ),
        PaperFigure(37, "of 1 or 2 epochs and 0, 10 or 50 % pretraining text at the start, only 10 % stands out"),
        PaperFigure(38, "without pretraining text every learning rate above 8.05e-6 diverges; with it PPO bears more"),
    )
}
"""Figure 36 also has a rating of 2.1 at a KL penalty of 0, which a logarithmic axis cannot show."""
