"""What is in the memory of one rank, part by part, at the moments when it is fullest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from instructgpt.data.packing import Example
from instructgpt.models.flops import FLOAT
from instructgpt.plan.context import Told
from instructgpt.plan.meta_trace import Held, Network
from instructgpt.plan.roofline import ACTIVATIONS, HALF, HOLES_BETWEEN
from instructgpt.sampling.cpu_fast_path import COPIED_BYTES

HOLES = 2.0
"""Bytes of the C library's heap that nothing fits into, for each byte of the trained weights, or of activations where these are fewer:
moments and gradients come to lie where activations were, so that these need new room. Gradients of adapters are so small that each spoils
the place of a whole activation. Measured on Linux (docs/performance.md)."""
EIGHT_BIT_FROM, BLOCK = 4096, 256
"""Numbers from which on a tensor's averages are kept in 8 bits, and how many of them share a scale (bitsandbytes)."""

Moments = dict[str, dict[str, float]]
"""Moment -> part -> bytes."""


@dataclass(frozen=True, slots=True)
class Mine:
    """Bytes that one rank holds of a model: parts of it or all, and what it gathers of the other parts while it learns."""

    weights: float
    gradients: float
    moments: float
    gathered: float


def mine(network: Network, told: Told) -> Mine:
    """What each rank holds of a model. While a group of layers is computed, the next one is being gathered, and gradients of one are
    added up while those of another are made; what lies outside the layers is there from start to end.
    """
    shape = network.shape
    weights, gradients, moments = float(shape.bytes), float(FLOAT * shape.trained), adam_bytes(network)
    if not told.divides(network):
        return Mine(weights, gradients, moments, 0.0)
    outside, *layers = network.groups
    gathered = FLOAT * (outside + 2 * max(layers, default=0)) * (1 + shape.trained / shape.parameters)
    if "offload" in network.memory:  # all of it waits in the memory of the host
        return Mine(0.0, 0.0, 0.0, gathered)
    return Mine(weights / told.ranks, gradients / told.ranks, moments / told.ranks, gathered)


def adam_bytes(network: Network) -> float:
    """Bytes of Adam's two averages of every number that is trained."""
    if "adam8bit" not in network.memory:
        return 2.0 * FLOAT * network.shape.trained
    return sum(2 * count * (1 + FLOAT / BLOCK if count >= EIGHT_BIT_FROM else FLOAT) for count in network.learned)


def peak(network: Network, groups: Sequence[Sequence[Example]], told: Told, *, again: bool = False) -> Held:
    """What a model holds beside its weights while it learns from the largest of some microbatches, gradients of all of it included
    unless ranks divide them. `again`: gradients are there before.
    """
    largest = max(groups, key=lambda examples: sum(map(len, examples)))
    return network.holds(largest, again=again or len(groups) > 1, divided=told.divides(network))


def holes(gradients: float, activations: float, adapters: bool, told: Told) -> float:
    """What of the C library's heap stays unused, beside the gradients of all weights or of adapters; CUDA's blocks are cut to size."""
    if told.device.type != "cpu" or not told.holes:
        return 0.0
    return activations if adapters else HOLES * min(gradients, activations)


def training_moments(network: Network, held: Held, told: Told, *, best: bool = False) -> Moments:
    """What is in memory while one model is trained. `best`: the weights that have validated best are kept."""
    own = mine(network, told)
    always = {"weights": own.weights, "gradients": own.gradients, "Adam's moments": own.moments}
    always |= {"the weights that validated best": own.gradients * best}
    beside = held.peak if own.gathered else max(0.0, held.peak - own.gradients)
    return {"updating": always | computing(beside, own.gradients, own.gathered, network.lora > 0, told)} | among_ranks(
        [network], [network], always, told
    )


def computing(beside: float, gradients: float, gathered: float, adapters: bool, told: Told) -> dict[str, float]:
    """What is held only while a model computes and learns. `beside`: besides weights and gradients; `gradients`: of all models."""
    return {
        ACTIVATIONS: beside,
        "parts of other ranks": gathered,
        HOLES_BETWEEN: holes(gradients, beside, adapters, told),
    }


def among_ranks(trained: Sequence[Network], loaded: Sequence[Network], always: dict[str, float], told: Told) -> Moments:
    """Moments that only ranks have. Where each holds all of a model, its gradients are put in one row to be added up; models that are to
    be divided are loaded whole, to the CPU.
    """
    whole = [FLOAT * network.shape.trained for network in trained if not told.divides(network)]
    found: Moments = {"adding up gradients": always | {"gradients in a row": float(max(whole))}} if told.ranks > 1 and whole else {}
    if told.device.type == "cpu" and any(told.divides(network) for network in loaded):
        found["loading"] = {"whole models": float(sum(network.shape.bytes for network in loaded))}
    return found


def ppo_moments(
    policy: Network,
    value: Network,
    reward: Network | None,
    held: tuple[Held, Held, Held | None],
    several: bool,
    slots: int,
    width: int,
    told: Told,
) -> Moments:
    """What is in memory while PPO samples and while it updates.

    Args:
        policy, value: with their adapters, where they have some; then the policy is the reference too.
        reward: None where it lies under the value model's adapters.
        held: by the policy's update, the value model's, and pretraining text, where there is some.
        several: gradients of both models are there when a microbatch begins.
        slots: rows sampled at once; width: tokens that each has room for.
    """
    one, other = mine(policy, told), mine(value, told)
    shape, half = policy.shape, "bf16" in policy.memory
    reference = 0.0 if policy.lora else one.weights
    average = one.gradients if policy.lora else one.weights
    always = {
        "weights: policy, reference, average": one.weights + reference + average,
        "weights: reward and value model": other.weights + (mine(reward, told).weights if reward else 0.0),
        "matrices in bf16, to sample": float(HALF * shape.matrices * half),
        "Adam's moments": one.moments + other.moments,
    }
    columns = 0 if half else FLOAT * (shape.matrices + shape.width * shape.vocabulary)
    sampling = {
        "weights gathered from other ranks": float(shape.bytes) if told.divides(policy) else 0.0,
        "matrices by columns": float(columns) if told.device.type == "cpu" and columns <= COPIED_BYTES else 0.0,
        "key-value cache": float((HALF if half else FLOAT) * shape.cached * slots * width),  # taken once, for all of them
        "logits": 4.0 * FLOAT * slots * shape.vocabulary,  # and what choosing a token makes of them
    }
    gradients = one.gradients + other.gradients
    first, second = (size.peak + (own.gradients if own.gathered else 0.0) for size, own in zip(held[:2], (one, other), strict=True))
    text = held[2].peak + (one.gradients if one.gathered else 0.0) if held[2] else 0.0
    if several:
        fullest = max(first + other.gradients, second + one.gradients, text + other.gradients)
    else:
        fullest = max(first, one.gradients + second)
    beside = max(0.0, fullest - gradients)
    learning = always | {"gradients": gradients}
    loaded = [policy, value, *([reward] if reward else []), *([] if policy.lora else [policy, policy])]
    return {
        "sampling": always | sampling,
        "updating": learning | computing(beside, gradients, max(one.gathered, other.gathered), policy.lora > 0, told),
    } | among_ranks([policy, value], loaded, learning, told)
