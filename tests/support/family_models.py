"""Small random models of every causal family of transformers, built from the family's own default configuration.

Sizes are small, and every window, chunk and sparse index is shorter than the texts of the checks.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

CONTEXT, WINDOW, LAYERS, VOCABULARY = 96, 8, 4, 300
EOS, PAD = 0, 1


def _sizes(value: int, names: str) -> dict[str, int]:
    return dict.fromkeys(names.split(), value)


SIZES = (
    _sizes(LAYERS, "num_hidden_layers n_layer n_layers num_layers decoder_layers num_blocks num_decoder_layers")
    | _sizes(4, "num_attention_heads n_head n_heads num_heads decoder_attention_heads swa_num_attention_heads")
    | _sizes(4, "linear_num_value_heads linear_num_heads attention_heads num_decoder_attention_heads index_n_heads")
    | _sizes(2, "num_key_value_heads num_kv_heads swa_num_key_value_heads linear_num_key_heads num_query_groups")
    | _sizes(8, "head_dim dim_head swa_head_dim kv_channels qk_nope_head_dim v_head_dim linear_key_head_dim")
    | _sizes(8, "linear_value_head_dim linear_head_dim d_head attention_head_dim attention_head_size index_head_dim")
    | _sizes(8, "mamba_head_dim mamba_headdim global_head_dim rotary_dim qk_rope_head_dim hidden_size_per_layer_input")
    | _sizes(16, "qk_head_dim kv_lora_rank q_lora_rank o_lora_rank time_step_rank mamba_dt_rank adapter_rank")
    | _sizes(32, "hidden_size d_model n_embd emb_dim embedding_dim embedding_size lru_width attention_hidden_size")
    | _sizes(32, "word_embed_proj_dim input_embedding_size output_embedding_size backbone_hidden_size")
    | _sizes(48, "intermediate_size decoder_ffn_dim ffn_dim ffn_hidden_size dim_ff dff n_inner d_inner")
    | _sizes(48, "feed_forward_size shared_intermediate_size shared_expert_intermediate_size intermediate_size_mlp")
    | _sizes(48, "dense_intermediate_size moe_shared_expert_intermediate_size moe_intermediate_size")
    | _sizes(48, "expert_ffn_hidden_size shared_experts_intermediate_size router_hidden_size")
    | _sizes(VOCABULARY, "vocab_size decoder_vocab_size unpadded_vocab_size vocab_size_per_layer_input")
    | _sizes(CONTEXT, "max_position_embeddings n_positions n_ctx max_seq_len seq_length model_max_length")
    | _sizes(CONTEXT, "context_length max_target_positions mem_len original_max_position_embeddings")
    | _sizes(WINDOW, "sliding_window window_size attention_chunk_size sliding_window_size local_attention")
    | _sizes(WINDOW, "attention_window_size chunk_size mamba_chunk_size index_block_size")
    | _sizes(64, "index_topk keep_window_size")
    | _sizes(
        4, "num_experts n_routed_experts num_local_experts moe_num_experts state_size mamba_d_state ssm_state_size"
    )
    | _sizes(2, "num_experts_per_tok moe_topk moe_k num_experts_per_token zero_expert_num index_topk_blocks")
    | _sizes(1, "n_group topk_group num_expert_group mamba_n_groups n_groups mamba_ngroups first_k_dense_replace")
    | _sizes(1, "num_dense_layers n_langs")
    | _sizes(LAYERS, "encoder_layers num_encoder_layers")
    | {"laurel_rank": 8, "query_pre_attn_scalar": 8, "num_nextn_predict_layers": 0, "ngram_vocab_size_base": 200}
    | {"mamba_d_head": 8, "mamba_n_heads": 8, "n_mamba_heads": 2, "mamba_num_heads": 8, "max_source_positions": 32}
    | {"mamba_d_ssm": 64, "floor_scale": 16, "full_attn_alpha_factor": 1, "num_kv_shared_layers": 0}
    | {"bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": PAD}
)
"""Small values by the names that configurations have for sizes."""

_MLA = {"num_key_value_heads": 4, "head_dim": 8}
_MAMBA_PAIR = {"layer_types": ["linear_attention", "full_attention"] * 2}
_INDEXER = {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": WINDOW}
_INDEXER |= {"indexer_compress_ratio": 2}
_DOTS3 = {"num_key_value_heads": 4, "head_dim": 16, "swa_q_lora_rank": 16, "swa_kv_lora_rank": 16}
_DOTS3 |= {
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_head_dim": 16,
    "swa_qk_nope_head_dim": 8,
    "swa_v_head_dim": 8,
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
CHANGES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE},
    },
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 48, "hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note": {
        "text_config": _DOTS3,
        "vision_config": {"adapter_in_dim": 32, "adapter_out_dim": 32},
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
    },
    "dots3_note_text": _DOTS3,
    "gemma3n_text": {"intermediate_size": [48] * 4, "activation_sparsity_pattern": [0.0] * 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": _MAMBA_PAIR,
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "moe_topk": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "reformer": {"axial_pos_embds": False, "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8},
    "xlstm": {"num_heads": 4, "chunk_size": 16, "hidden_size": 128, "embedding_dim": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "attention_hidden_size": 64},
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 64,
        "n_mamba_heads": 8,
    },
    "zaya": {"num_experts_per_tok": 1},
}
"""What a family's small configuration needs beside the sizes."""
ENCODERS = frozenset(
    [
        "bert",
        "bert-generation",
        "big_bird",
        "camembert",
        "data2vec-text",
        "electra",
        "ernie",
        "megatron-bert",
        "reformer",
        "rembert",
        "roberta",
        "roberta-prelayernorm",
        "roc_bert",
        "roformer",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    ]
)
"""Families that are built with `is_decoder`, which makes them causal."""


def _shrink(values: dict[str, Any]) -> dict[str, Any]:
    """Return small values for the sizes among a configuration's values, and lists of layers that hold every kind."""
    small = {
        name: SIZES[name]
        for name, value in values.items()
        if name in SIZES and value is not None and not isinstance(value, list | bool | dict)
    }
    for name in ("layer_types", "mlp_layer_types"):
        kinds = list(dict.fromkeys(values.get(name) or ()))
        if len(kinds) > 1:
            small[name] = [kinds[layer % len(kinds)] for layer in range(LAYERS)]
    if "kv_lora_rank" in small:
        small |= _MLA
    return small


def small_config(family: str, **changes: Any) -> Any:
    """Return a small configuration of a family of the auto mapping; `changes` come on top."""
    config_class = CONFIG_MAPPING[family]
    values = config_class().to_dict()
    small = _shrink(values)
    for part in ("text_config", "vision_config", "audio_config", "vq_config"):
        if isinstance(values.get(part), dict):
            kind = {"model_type": values[part]["model_type"]} if "model_type" in values[part] else {}
            small[part] = _shrink(values[part]) | kind
    if family in ENCODERS:
        small["is_decoder"] = True
    for name, value in (CHANGES.get(family, {}) | changes).items():
        small[name] = small.get(name, {}) | value if isinstance(value, dict) and name.endswith("_config") else value
    return config_class(**small)


@torch.no_grad()
def small_model(family: str, **changes: Any) -> Any:
    """Return a small random model of a family, whose weights are large enough for clearly different logits."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small_config(family, **changes)).float().eval()
    enlarge_weights(model)
    return model


@torch.no_grad()
def enlarge_weights(model: Any) -> None:
    """Draw matrices anew with variance 1 / inputs, embeddings with variance 1, and disturb vectors."""
    embeddings = {id(part.weight) for part in model.modules() if isinstance(part, torch.nn.Embedding)}
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            parameter.add_(0.1 * torch.randn_like(parameter))
        elif "A_log" not in name:
            scale = 0.7 if id(parameter) in embeddings else 1 / math.sqrt(parameter.shape[-1])
            parameter.normal_(0, scale)


def families() -> list[str]:
    """Return all names of transformers' auto mapping of causal models."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


transformers.utils.logging.set_verbosity_error()
