"""What PPO must compute, in FLOPs: the ideal its speed is measured by, and the share of pretraining text in it."""

from __future__ import annotations

from collections.abc import Sequence

from instructgpt.data.packing import Example
from instructgpt.models.flops import Shape, Text


def update_flops(policy: Shape, value: Shape, reward: Shape, episodes: Sequence[Example], epochs: int = 1) -> dict[str, float]:
    """FLOPs of an update on some episodes, phase by phase. Nothing is computed twice, and nothing that is not real.

    A token is computed once while sampling (all but the last, which nobody reads), once by each model that scores it, and three
    times, forward and backward, by each model that learns (twice by one whose adapters alone learn). Logits are those of completion
    tokens, and the last layer makes more than keys and values only where its states are read: for completion tokens, and for a
    score's last one.
    """
    texts = [Text(len(episode), read=len(episode.completion)) for episode in episodes]
    known = [text._replace(tokens=text.tokens - 1) for text in texts]
    predicted = sum(len(episode.completion) for episode in episodes)
    forward, valued = policy.forward(texts, predicted), value.forward(texts)
    return {
        "sampling": policy.forward(known, predicted),
        "score": reward.forward([Text(len(episode), read=1) for episode in episodes]),
        "reference": forward,
        "values": valued,
        "policy update": epochs * (forward + policy.backward(texts, predicted)),
        "value update": epochs * (valued + value.backward(texts)),
    }


def pretraining_flops(policy: Shape, rows: float, window: int) -> float:
    """FLOPs of learning from rows of pretraining text, each taken as one document."""
    text = [Text(window)]
    return rows * (policy.forward(text, window) + policy.backward(text, window))
