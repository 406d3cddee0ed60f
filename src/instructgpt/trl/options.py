"""What TRL's options mean here, for TRL 1.16 (PPO: 0.24, whose trainer was removed later) and transformers 5.23.

Options that are neither renamed nor computed in `convert.py` are in `FIXED`: with the value that gives what the stage
does anyway, if there is one, and what to know where the value is another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

RENAMED: dict[str, dict[str, str]] = {
    "sft": {},
    "reward": {},
    "dpo": {"beta": "beta"},
    "ppo": {
        "num_ppo_epochs": "epochs",
        "total_episodes": "episodes",
        "kl_coef": "kl_coef",
        "cliprange": "clip",
        "cliprange_value": "value_clip",
        "lam": "lam",
        "response_length": "max_tokens",
        "missing_eos_penalty": "eos_penalty",
        "adam_epsilon": "adam_eps",
        "sft_model_path": "policy",
        "reward_model_path": "reward",
    },
}
"""TRL's name → ours, of options whose value stays the same. `COMMON_RENAMED` are those of every trainer."""
COMMON_RENAMED = {"learning_rate": "lr", "seed": "seed", "max_grad_norm": "max_grad_norm", "output_dir": "out"}

DEFAULTS: dict[str, dict[str, Any]] = {
    "sft": {"learning_rate": 2e-5, "num_train_epochs": 3, "max_length": 1024},
    "reward": {"learning_rate": 1e-4, "num_train_epochs": 3, "max_length": 1024},
    "dpo": {"learning_rate": 1e-6, "num_train_epochs": 3, "max_length": 1024, "beta": 0.1},
    "ppo": {
        "learning_rate": 5e-5,
        "num_ppo_epochs": 4,
        "num_mini_batches": 1,
        "kl_coef": 0.05,
        "cliprange": 0.2,
        "cliprange_value": 0.2,
        "lam": 0.95,
        "response_length": 53,
        "temperature": 0.7,
        "adam_epsilon": 1e-8,
        "missing_eos_penalty": None,
        "vf_coef": 0.1,
    },
}
"""TRL's defaults that are not ours; `COMMON_DEFAULTS` are those of every trainer. A converted file states them."""
COMMON_DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "seed": 42,
    "max_grad_norm": 1.0,
    "gradient_checkpointing": True,
    "bf16": None,
    "load_best_model_at_end": False,
    "lr_scheduler_type": "linear",
    "adam_beta2": 0.999,
    "lora_r": 16,
    "lora_alpha": 32,
}
ADAPTER_DEFAULTS: dict[str, Any] = {"lora_dropout": 0.05, "lora_target_modules": None}
"""Of an adapter run, beside them."""

COMPUTED = frozenset(
    {
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "num_mini_batches",
        "num_train_epochs",
        "max_steps",
        "model_name_or_path",
        "model_revision",
        "dataset_name",
        "dataset_config",
        "dataset_train_split",
        "dataset_test_split",
        "bf16",
        "fp16",
        "gradient_checkpointing",
        "activation_checkpointing",
        "load_in_4bit",
        "use_peft",
        "lora_r",
        "lora_alpha",
        "optim",
        "report_to",
        "save_total_limit",
        "load_best_model_at_end",
        "warmup_steps",
        "warmup_ratio",
        "assistant_only_loss",
    }
)
"""Options that `convert.py` computes ours from."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """An option without a counterpart. `same` are the values with which the stage does the same; `ANY`: all of them."""

    text: str
    same: tuple[Any, ...] = ()


ANY = ("any value",)
_LOSS = "the loss is the mean over completion tokens"
_HARDWARE = "memory and speed are set apart (--memory, --microbatch-tokens); no result depends on them"
_SCHEDULE = "the schedule is cosine to a tenth, in PPO constant after ten updates; only DPO has --warmup"
_ADAM = "Adam has the paper's betas (0.9, 0.95)"
_PROMPT = "sampling is from the policy itself, and the score stands at the last token"
_ADAPTER = "adapters are on all linear layers, with alpha twice the rank and no dropout"

FIXED: dict[str, Fixed] = {
    # data
    "max_length": Fixed("nothing is cut off; what does not fit the model's context is left out and counted"),
    "truncation_mode": Fixed("nothing is cut off", ANY),
    "dataset_text_field": Fixed("data are demonstrations; plain text belongs to --pretraining", ("text",)),
    "dataset_kwargs": Fixed("texts are always rendered by the template", (None,)),
    "dataset_streaming": Fixed("data are read whole", (False,)),
    "datasets": Fixed("name the files of the mixture in data, with several files after --data", ([],)),
    "streaming": Fixed("data are read whole", (False,)),
    "test_split_size": Fixed("a tenth of the prompts is held out", (None,)),
    "chat_template_path": Fixed("save the tokenizer with this template beside the model", (None,)),
    "eos_token": Fixed("the stop token follows from the template; save the tokenizer with yours", (None,)),
    "pad_token": Fixed("nothing is padded", ANY),
    "packing": Fixed("a batch counts demonstrations, not packed rows; packing here changes no result", (False,)),
    "completion_only_loss": Fixed(_LOSS, (None, True)),
    "loss_type": Fixed("SFT: cross-entropy; DPO: the sigmoid loss", (None, "nll", "sigmoid", ["sigmoid"])),
    "shuffle_dataset": Fixed("every epoch has its own order", ANY),
    "train_sampling_strategy": Fixed("every epoch has its own random order", ("random",)),
    # training
    "lr_scheduler_type": Fixed(_SCHEDULE, ("cosine",)),
    "lr_scheduler_kwargs": Fixed(_SCHEDULE, (None,)),
    "adam_beta1": Fixed(_ADAM, (0.9,)),
    "adam_beta2": Fixed(_ADAM, (0.95,)),
    "adam_epsilon": Fixed("epsilon is 1e-8; only PPO has an option", (1e-8,)),
    "weight_decay": Fixed("there is no weight decay after pretraining", (0, 0.0)),
    "label_smoothing_factor": Fixed(_LOSS, (0, 0.0)),
    "neftune_noise_alpha": Fixed("no noise is added to embeddings", (None,)),
    "router_aux_loss_coef": Fixed("no auxiliary loss of routers is added", (None, 0, 0.0)),
    "average_tokens_across_devices": Fixed("means are over the tokens of all devices", (True,)),
    "disable_dropout": Fixed("dropout is off in the reward model, DPO and PPO", (True,)),
    "dtype": Fixed("weights are float32; --memory bf16 computes in bf16", ("float32", None)),
    "torch_dtype": Fixed("weights are float32; --memory bf16 computes in bf16", ("float32", None)),
    "center_rewards_coefficient": Fixed("scores are centered afterwards: demonstrations average 0", (None,)),
    # adapters
    "lora_dropout": Fixed(_ADAPTER, (0, 0.0)),
    "lora_target_modules": Fixed(_ADAPTER, ("all-linear", ["all-linear"])),
    "lora_target_parameters": Fixed(_ADAPTER, (None,)),
    "lora_modules_to_save": Fixed("a reward model's head is trained and saved whole", (None,)),
    "lora_task_type": Fixed("it follows from the stage", ANY),
    "use_rslora": Fixed(_ADAPTER, (False,)),
    "use_dora": Fixed(_ADAPTER, (False,)),
    "load_in_8bit": Fixed("there are no 8-bit weights; --memory 4bit", (False,)),
    "bnb_4bit_quant_type": Fixed("4-bit weights are NF4", ("nf4",)),
    "use_bnb_nested_quant": Fixed("constants of 4-bit weights are not quantized", (False,)),
    "bnb_4bit_quant_storage": Fixed(_HARDWARE, ANY),
    # DPO
    "loss_weights": Fixed("there is one loss", (None,)),
    "ld_alpha": Fixed("log-probabilities are sums over the completion", (None, 1, 1.0)),
    "f_divergence_type": Fixed("the divergence is the reverse KL", ("reverse_kl",)),
    "f_alpha_divergence_coef": Fixed("the divergence is the reverse KL", (0.5,)),
    "label_smoothing": Fixed("labels are not smoothed", (0, 0.0)),
    "use_weighting": Fixed("pairs are not weighted", (False,)),
    "discopop_tau": Fixed("the loss is the sigmoid loss", ANY),
    "sync_ref_model": Fixed("the reference stays the initial policy", (False,)),
    "ref_model_mixup_alpha": Fixed("the reference stays the initial policy", ANY),
    "ref_model_sync_steps": Fixed("the reference stays the initial policy", ANY),
    "precompute_ref_log_probs": Fixed(_HARDWARE, ANY),
    "precompute_ref_batch_size": Fixed(_HARDWARE, ANY),
    # PPO
    "whiten_rewards": Fixed("advantages are whitened, rewards are not", (False,)),
    "kl_estimator": Fixed("the penalty is the log ratio (k1)", ("k1",)),
    "vf_coef": Fixed("the value model is a network of its own, with --value-lr"),
    "gamma": Fixed("the discount is 1", (1, 1.0)),
    "temperature": Fixed(f"the temperature is 1: {_PROMPT}", (1, 1.0)),
    "stop_token": Fixed("a completion ends at its stop token", (None, "eos")),
    "stop_token_id": Fixed("a completion ends at its stop token", (None,)),
    "num_sample_generations": Fixed("samples of every update are in samples.jsonl", ANY),
    "local_rollout_forward_batch_size": Fixed(_HARDWARE, ANY),
    "ds3_gather_for_generation": Fixed(_HARDWARE, ANY),
    "model_adapter_name": Fixed("the reference of an adapter run is the model without its adapter", (None,)),
    "ref_adapter_name": Fixed("the reference of an adapter run is the model without its adapter", (None,)),
    "exp_name": Fixed("the directory is the name", ANY),
    # files, safety
    "trust_remote_code": Fixed("code of models is never run", (False,)),
    "model_init_kwargs": Fixed("models are loaded by their directory or name alone", (None,)),
    "push_to_hub": Fixed("push the finished directory: instructgpt push", (False,)),
    "resume_from_checkpoint": Fixed("the same command resumes", ANY),
    "ignore_data_skip": Fixed("a resumed run goes on where it stood", (False,)),
    "full_determinism": Fixed("runs on a CPU are the same twice", ANY),
    "use_cpu": Fixed("--device cpu", (False,)),
    "auto_find_batch_size": Fixed(_HARDWARE, ANY),
    "metric_for_best_model": Fixed("--keep best chooses by the stage's own validation metric", ANY),
    "greater_is_better": Fixed("--keep best chooses by the stage's own validation metric", ANY),
}
_NOT_NEEDED = {
    "every step is in metrics.jsonl": "logging_* log_* run_name project trackio_* disable_tqdm debug include_*",
    "validation data are measured every epoch or at intervals": "eval_* per_device_eval_batch_size do_* "
    "batch_eval_metrics "
    "prediction_loss_only bf16_full_eval fp16_full_eval dataset_test_split_size",
    "a checkpoint is written about once a minute": "save_* enable_jit_checkpoint "
    "restore_callback_states_from_checkpoint",
    "push the finished directory: instructgpt push": "hub_*",
    "ranks, sharding and packing are set apart (--processes, torchrun)": "ddp_* fsdp* deepspeed accelerator_config "
    "parallelism_config local_rank dataloader_* dataset_num_proc world_size ignore_bias_buffers",
    _HARDWARE: "torch_* tf32 use_liger_kernel liger_kernel_config activation_offloading "
    "activation_checkpointing_kwargs gradient_checkpointing_kwargs "
    "gradient_checkpointing_use_reentrant "
    "padding_free pad_to_multiple_of packing_strategy eval_packing attn_implementation optim_args "
    "optim_target_modules use_cache skip_memory_metrics length_column_name remove_unused_columns label_names data_seed",
    "PPO computes them from the other sizes": "num_total_batches micro_batch_size local_batch_size batch_size "
    "local_mini_batch_size mini_batch_size",
}
"""Reasons, and the options (with `*`: all that begin so) that need no counterpart whatever their value is."""


def fixed_option(name: str) -> Fixed | None:
    """Return what to know about an option without a counterpart; None for a name that TRL does not have."""
    if name in FIXED:
        return FIXED[name]
    for text, patterns in _NOT_NEEDED.items():
        for pattern in patterns.split():
            if name == pattern or (pattern.endswith("*") and name.startswith(pattern[:-1])):
                return Fixed(text, ANY)
    return None


def option_names(trainer: str) -> set[str]:
    """Return the names that are known one by one, for suggestions."""
    names = {*COMMON_RENAMED, *RENAMED[trainer], *COMPUTED, *FIXED}
    return names | {word for words in _NOT_NEEDED.values() for word in words.split() if not word.endswith("*")}
