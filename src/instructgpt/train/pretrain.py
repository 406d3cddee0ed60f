"""Stage 0: pretrain a small base model from scratch (the demo's GPT).

instructgpt pretrain --corpus corpus.jsonl --out runs/base
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from instructgpt import functional
from instructgpt.data.pretraining_text import Corpus, build_corpus, hold_out_documents, iter_documents, train_tokenizer
from instructgpt.data.tokenization import PromptTokenizer
from instructgpt.distributed.launch import launch
from instructgpt.models.packed_attention import use_packed_attention
from instructgpt.models.policy import PRETRAINING_WINDOW_KEY, count_parameters, load_tokenizer
from instructgpt.models.precision import apply_memory_options
from instructgpt.models.sharding import full_model_on_rank0, shard
from instructgpt.records import SkippedLines
from instructgpt.run.directory import RunDirectory
from instructgpt.run.lineage import named_inputs
from instructgpt.train.alarms import LossAlarm
from instructgpt.train.configs import PretrainConfig
from instructgpt.train.optim import (
    BestCheckpoint,
    build_stage_optimizers,
    get_stage_device,
    get_training_state,
    lm_loss,
    load_training_state,
    optimizer_step,
)
from instructgpt.train.startup import save_and_verify_policy, try_saving

_VALIDATION_SHARE = 0.01
_MAX_VALIDATION_SEQUENCES = 64
VALIDATION_INTERVAL = 100
_MAX_TOKENIZER_CHARACTERS = 50_000_000


def main(config: PretrainConfig) -> Path:
    """Train in `config.processes` processes and return the run directory."""
    launch(train, config, config.processes, config.patience)
    return config.out


def train(config: PretrainConfig) -> None:
    """Run the stage in one rank."""
    inputs = named_inputs(corpus=config.corpus) | ({"tokenizer": config.tokenizer} if config.tokenizer else {})
    run = RunDirectory.open(config, inputs)
    if run.is_finished:
        return
    device = get_stage_device(run)
    skipped = SkippedLines(config.skip_bad)
    texts, heldout_texts = read_texts(config, skipped)
    run.summary["left_out"] = {"bad lines": len(skipped.reasons)}
    tokenizer = load_or_train_tokenizer(config, texts)
    window, seed = config.window, config.seed
    corpus = build_corpus(texts, tokenizer, window, seed, config.steps * config.batch)
    heldout_name = "the held-out hundredth of the corpus"
    validation = build_corpus(heldout_texts, tokenizer, window, seed, _MAX_VALIDATION_SEQUENCES, heldout_name)
    model = build_base_model(config, tokenizer).to(device)
    use_packed_attention(model)
    apply_memory_options(model, config.memory)
    shard(model, memory=config.memory)
    models, optimizers = {"model": model}, build_stage_optimizers(config, model, weight_decay=config.weight_decay)
    state = run.restore()
    if state:
        load_training_state(state, models, optimizers)
    else:
        full_model = full_model_on_rank0(model)
        try_saving(run, lambda folder: save_and_verify_policy(full_model, tokenizer, folder))
    best = BestCheckpoint(model, config.keep, state and state["best"])
    loss_alarm = LossAlarm(len(tokenizer.hf_tokenizer))
    model.train()
    for step in range(state["step"] if state else 0, config.steps):
        loss = lm_loss(model, corpus.examples(step * config.batch, config.batch), seed=step)
        loss_alarm.check(loss, is_last=step + 1 == config.steps)
        lr = config.lr * functional.cosine_decay(step, config.steps, 0.05, round(config.warmup * config.steps))
        norm = optimizer_step(list(optimizers.values()), lr, config.max_grad_norm)
        metrics = {"loss/train": loss, "lr": lr, "gradient_norm": norm}
        metrics["tokens"] = (step + 1) * config.batch * window
        if (step + 1) % VALIDATION_INTERVAL == 0 or step + 1 == config.steps:
            metrics["loss/validation"] = compute_validation_loss(model, validation)
            loss_alarm.check_validation(metrics["loss/validation"])
            best.update(-metrics["loss/validation"], step + 1)
        run.log(step + 1, config.steps, metrics, show=("loss/train", "loss/validation", "lr"))
        run.save_checkpoint(step + 1, lambda: get_training_state(models, optimizers, best=best.state_dict()))
    best.restore()
    if config.keep == "best":
        run.info(f"keeps step {best.position} of {config.steps}, chosen by validation loss")
    tokens = config.steps * config.batch * window
    summary = {
        "vocab_size": loss_alarm.vocab_size,
        "tokens": tokens,
        "parameters": count_parameters(model),
        "step": best.position,
    }
    full_model = full_model_on_rank0(model)
    run.finish(lambda folder: save_and_verify_policy(full_model.eval(), tokenizer, folder), **summary)


def read_texts(config: PretrainConfig, skipped: SkippedLines) -> tuple[list[str], list[str]]:
    """Return the documents to train on, and those held out for validation."""
    return hold_out_documents(list(iter_documents(config.corpus, skipped)), _VALIDATION_SHARE)


def load_or_train_tokenizer(config: PretrainConfig, texts: list[str]) -> PromptTokenizer:
    if config.tokenizer is not None:
        return load_tokenizer(config.tokenizer)
    character_count, document_count = 0, 0
    for document_count, text in enumerate(texts, 1):  # noqa: B007
        character_count += len(text)
        if character_count > _MAX_TOKENIZER_CHARACTERS:
            break
    tokenizer = train_tokenizer(texts[:document_count], config.vocabulary)
    tokenizer.model_max_length = config.context
    return PromptTokenizer(tokenizer)


def build_base_model(config: PretrainConfig, tokenizer: PromptTokenizer) -> Any:
    """Return a random Llama with tied embeddings.

    With `copy_init`, W_O of each layer starts as the transpose of W_V ("mimetic" initialization, Trockman and Kolter
    2023): a head then writes what it attends to, so that copying from the context only has to learn where to attend.
    """
    torch.manual_seed(config.seed)
    tokens = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos}
    model = transformers.LlamaForCausalLM(build_llama_config(config, len(tokenizer.hf_tokenizer), **tokens))
    if config.copy_init:
        with torch.no_grad():
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.copy_(layer.self_attn.v_proj.weight.T)
    return model


def build_llama_config(config: PretrainConfig, vocabulary: int, **tokens: int | None) -> Any:
    """Build the model's configuration; `tokens` are the ids of special tokens."""
    return transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=config.width,
        intermediate_size=config.width * 8 // 3 // 8 * 8,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=config.context,
        initializer_range=config.width**-0.5,
        tie_word_embeddings=True,
        pad_token_id=None,
        **{PRETRAINING_WINDOW_KEY: config.window},
        **tokens,
    )


def compute_validation_loss(model: Any, validation: Corpus) -> float:
    """Return the mean cross-entropy of held-out rows, in nats."""
    model.eval()
    with torch.no_grad():
        examples = validation.examples(0, min(len(validation), _MAX_VALIDATION_SEQUENCES))
        loss = lm_loss(model, examples, backward=False)
    model.train()
    return loss
