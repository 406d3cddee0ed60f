"""What is known about the families of causal models that transformers has: which are refused, and how others run.

`families.json` has one row a family of transformers' auto mapping, measured by `make families` on small models whose
texts are longer than every window. A configuration is checked against it before any weights are read, so a model that
cannot be exact is refused in one line, and not found out by the size of its numbers or in the middle of training.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

from instructgpt.errors import InputError

DEFAULT_CONTEXT = 2048
"""Tokens of context where a configuration names none (recurrent models)."""
_CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "n_ctx",
    "seq_length",
    "max_sequence_length",
    "max_seq_length",
    "model_max_length",
    "max_target_positions",
    "context_length",
)
"""Names of the context length in configurations of transformers."""
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
"""Rotary position embeddings whose frequencies depend on the longest text of the batch."""
_PADDING_OFFSET_FAMILIES = frozenset(
    [
        "camembert",
        "data2vec-text",
        "ernie_m",
        "esm",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    ]
)
"""Families whose first position has the number of the padding token plus 1, so that fewer positions are left."""


@dataclass(frozen=True, slots=True)
class Family:
    """One row of the table: how models of a family are computed.

    `packed`: attention goes through transformers' interface, so a batch needs no padding where a layer has no window.
    `cache`: the static KV cache is exact for rows of any lengths. `reward`: transformers has a classifier of the family
    that serves as reward model. `refused`: why models of the family are not accepted; None where they are exact.
    """

    packed: bool = False
    cache: bool = False
    reward: bool = True
    refused: str | None = None
    decoder_only: bool = False  # exact with `is_decoder` in the configuration, refused without
    context_key: str | None = None  # name of the length beyond which later tokens change earlier ones


@functools.cache
def load_table() -> dict[str, Family]:
    """Load the table of families, by the configuration's `model_type`."""
    text = resources.files("instructgpt.models").joinpath("families.json").read_text(encoding="utf-8")
    return {name: Family(**row) for name, row in json.loads(text)["families"].items()}


def get_family(config: Any) -> Family | None:
    """Return the row of a configuration's family, or None where the table has none (a family of other code)."""
    return load_table().get(config.model_type)


def text_config(config: Any) -> Any:
    """Return the part of a configuration that describes the language model: itself, or a nested `text_config`."""
    return config.get_text_config()


def check_supported(config: Any, source: object, *, reward: bool = False) -> None:
    """Refuse a model by its configuration.

    Args:
        config: a configuration of transformers.
        source: the model's directory or name, for the message.
        reward: whether it is to be a reward or value model.

    Raises:
        InputError: the family is not supported, or not as a reward model.
    """
    family, name = get_family(config), config.model_type
    if family is None:
        import transformers  # takes seconds

        kinds = transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, transformers.MODEL_FOR_CAUSAL_LM_MAPPING
        if type(config) not in kinds[not reward] and not getattr(config, "auto_map", None):
            missing = "sequence classifier" if reward else "causal language model"
            raise InputError(
                f"{source}: transformers has no {missing} of the family '{name}' (docs/reference/families.md)"
            )
        return
    if family.refused is not None:
        raise InputError(
            f"{source}: the family '{name}' is not supported: {family.refused} (docs/reference/families.md)"
        )
    if family.decoder_only and not getattr(text_config(config), "is_decoder", False):
        reason = 'without "is_decoder": true in config.json it reads both ways and cannot write text'
        raise InputError(f"{source}: the family '{name}' is not supported here: {reason} (docs/reference/families.md)")
    if reward and not family.reward:
        reason = "transformers has no sequence classifier of this family with a linear head 'score'"
        raise InputError(f"{source}: the family '{name}' cannot be a reward or value model: {reason}")


def iter_rope_parameters(config: Any) -> Iterator[dict[str, Any]]:
    """Yield the parameters of rotary position embeddings: one set, or one a type of layer."""
    parameters = getattr(text_config(config), "rope_parameters", None) or {}
    if "rope_type" in parameters:
        yield parameters
    else:
        yield from (one for one in parameters.values() if isinstance(one, dict))


def named_context(config: Any) -> int | None:
    """Return the context length that a configuration names, or None."""
    text = text_config(config)
    named = (getattr(text, key, None) for key in _CONTEXT_KEYS)
    return next((int(length) for length in named if isinstance(length, int) and length > 0), None)


def max_context(config: Any) -> int:
    """Return the longest text, in tokens, that a model of this configuration computes the same in every batch."""
    text, context = text_config(config), named_context(config) or DEFAULT_CONTEXT
    if config.model_type in _PADDING_OFFSET_FAMILIES:
        context -= (getattr(text, "pad_token_id", None) or 0) + 1
    family = get_family(config)
    if family is not None and family.context_key is not None:
        context = min(context, int(getattr(text, family.context_key, None) or context))
    for parameters in iter_rope_parameters(config):
        if parameters.get("rope_type") in _LENGTH_DEPENDENT_ROPE:
            original = parameters.get("original_max_position_embeddings")
            context = min(context, int(original or getattr(text, "original_max_position_embeddings", None) or context))
    return context


def context_notice(config: Any) -> str | None:
    """Return what to say about a context that is not simply the one that the configuration names."""
    named, context = named_context(config), max_context(config)
    if named is None:
        return f"the configuration names no context length; texts of up to {context:,} tokens are used"
    family = get_family(config)
    if family is not None and family.context_key is not None and context < named:
        reason = "beyond it its sparse attention lets later tokens change earlier ones"
        return f"texts of up to {context:,} tokens ({family.context_key}) are used, not {named:,}: {reason}"
    rope_types = {parameters.get("rope_type") for parameters in iter_rope_parameters(config)}
    if context < named and rope_types & set(_LENGTH_DEPENDENT_ROPE):
        reason = "beyond it the frequencies of its position embeddings depend on the other texts of a batch"
        return f"texts of up to {context:,} tokens are used, not {named:,}: {reason}"
    return None
