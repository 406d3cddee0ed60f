"""What PPO must compute, in FLOPs: the ideal its speed is measured by, and the share of pretraining text in it."""

from __future__ import annotations

from collections.abc import Sequence

from instructgpt.data.packing import TokenizedExample
from instructgpt.models.flops import ModelShape, SequenceShape


def ppo_update_flops(
    policy: ModelShape, value: ModelShape, reward: ModelShape, episodes: Sequence[TokenizedExample], epochs: int = 1
) -> dict[str, float]:
    """FLOPs of an update on some episodes, phase by phase. Nothing is computed twice, and nothing that is not real.

    A token is computed once while sampling (all but the last, which nobody reads), once by each model that scores it, and three
    times, forward and backward, by each model that learns (twice by one whose adapters alone learn). Logits are those of completion
    tokens, and the last layer makes more than keys and values only where its states are read: for completion tokens, and for a
    score's last one.
    """
    sequences = [SequenceShape(len(episode), output_tokens=len(episode.completion_ids)) for episode in episodes]
    sampled_sequences = [text._replace(tokens=text.tokens - 1) for text in sequences]
    completion_tokens = sum(len(episode.completion_ids) for episode in episodes)
    policy_forward, value_forward = policy.forward_flops(sequences, completion_tokens), value.forward_flops(sequences)
    return {
        "sampling": policy.forward_flops(sampled_sequences, completion_tokens),
        "score": reward.forward_flops([SequenceShape(len(episode), output_tokens=1) for episode in episodes]),
        "reference": policy_forward,
        "values": value_forward,
        "policy update": epochs * (policy_forward + policy.backward_flops(sequences, completion_tokens)),
        "value update": epochs * (value_forward + value.backward_flops(sequences)),
    }


def pretraining_flops(policy: ModelShape, rows: float, sequence_length: int) -> float:
    """FLOPs of learning from rows of pretraining text, each taken as one document."""
    sequences = [SequenceShape(sequence_length)]
    return rows * (policy.forward_flops(sequences, sequence_length) + policy.backward_flops(sequences, sequence_length))
