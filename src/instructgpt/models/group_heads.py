"""Heads of groups of labelers, beside the head of all labelers in a reward model's directory.

`group_heads.json` holds, for each group, what is added to the weights of the shared head, and the offset that centers
the group's scores of demonstrations on 0. Stock tools ignore the file and load the shared head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from instructgpt.errors import InputError, one_line
from instructgpt.records import write_text_atomic

GROUP_HEADS_FILE = "group_heads.json"
GainVerdict = Literal["helps", "does not help", "harms", "not measured"]


class SavedGroupHead(BaseModel):
    """One group's entry of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    weight_offset: tuple[float, ...]
    """(D,) added to the weights of the shared head."""
    score_offset: float
    """Subtracted, so that demonstrations average 0."""
    shrinkage: float | None = Field(ge=0)
    """Ridge penalty of the fit; None where no offset predicted left-out labelers better."""
    verdict: GainVerdict
    """Of its gain over the shared head, on held-out labelers of the group."""


class _GroupHeadsFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    groups: dict[str, SavedGroupHead] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class HeadsOfGroups:
    """Heads of some groups, ready to score."""

    names: tuple[str, ...]
    weights: Tensor
    """(G, D) in float32."""
    biases: Tensor
    """(G,) with the scores' offsets subtracted."""

    def scores(self, head_inputs: Tensor) -> dict[str, Tensor]:
        """Return each group's scores: (B, D) -> (B,) a group."""
        scores = head_inputs.float() @ self.weights.T + self.biases
        return dict(zip(self.names, scores.unbind(1), strict=True))


def write_group_heads(folder: Path, heads: Mapping[str, SavedGroupHead]) -> None:
    text = _GroupHeadsFile(groups=dict(heads)).model_dump_json(indent=1)
    write_text_atomic(folder / GROUP_HEADS_FILE, text + "\n")


def read_group_heads(source: Path | str) -> dict[str, SavedGroupHead]:
    """Return the heads of groups in a reward model's directory, none without the file.

    Raises:
        InputError: the file is not as `write_group_heads` writes it.
    """
    file = Path(source) / GROUP_HEADS_FILE
    if not file.is_file():
        return {}
    try:
        return _GroupHeadsFile.model_validate_json(file.read_bytes()).groups
    except ValidationError as error:
        raise InputError(
            f"{file}: not heads of groups ({one_line(error, 200)}); train the reward model again"
        ) from None


def select_groups(source: Path | str, groups: Sequence[str], size: int) -> list[SavedGroupHead]:
    """Return the heads of these groups from a reward model's directory.

    Raises:
        InputError: a group has none there, or one that does not fit a head of `size` weights.
    """
    heads = read_group_heads(source)
    for group in groups:
        if group not in heads:
            present = (
                f"it has heads of: {', '.join(heads)}" if heads else "train them with 'instructgpt reward --groups'"
            )
            raise InputError(f"--group {group}: {source} has no head of this group; {present}")
        if len(heads[group].weight_offset) != size:
            numbers = f"{len(heads[group].weight_offset)} weights for a head of {size}"
            raise InputError(f"{Path(source) / GROUP_HEADS_FILE}: {numbers}; the files belong to two models")
    return [heads[group] for group in groups]


def describe_group_head(group: str, head: SavedGroupHead) -> str:
    """Return the line that is printed where a group's head scores."""
    lines = {
        "helps": "its head predicts held-out labelers of the group better than the shared head",
        "does not help": "its head does not help: the shared head predicts held-out labelers of the group as well",
        "harms": "its head predicts held-out labelers of the group worse than the shared head",
        "not measured": "whether its head helps is not measured: too few held-out labelers of the group",
    }
    return f"group {group}: {lines[head.verdict]}"


def stack_heads(shared: nn.Linear, groups: Sequence[str], heads: Sequence[SavedGroupHead]) -> HeadsOfGroups:
    """Return the weights of groups' heads, from the shared head and what they add to it."""
    offsets = torch.tensor([head.weight_offset for head in heads], dtype=torch.float64)
    weights = (shared.weight.detach().cpu().double() + offsets).float()
    bias = 0.0 if shared.bias is None else float(shared.bias)
    return HeadsOfGroups(tuple(groups), weights, torch.tensor([bias - head.score_offset for head in heads]))


@torch.no_grad()
def add_to_head(shared: nn.Linear, head: SavedGroupHead) -> None:
    """Make the shared head that of a group."""
    offset = torch.tensor(head.weight_offset, dtype=torch.float64, device=shared.weight.device)
    shared.weight.copy_(shared.weight.double() + offset)
