"""Supervised fine-tuning, ours beside TRL's SFTTrainer in each of its modes: same weights, same demonstrations, one
thread, taking turns.

    python bench/sft.py               # both sizes; the first time it makes .bench-trl, TRL's own virtual environment
    python bench/sft.py --rounds 5 --size 0.9M

Demonstrations of mixed lengths. First both sides say the mean loss a completion token, which must agree; then they take
turns at one pass over all of them: forward, backward, clipping and AdamW, with a learning rate of 0, so that every pass
computes the same. TRL pads, groups by length, or packs (bfd: rows of 256 tokens, one at a time, which is fastest on a
CPU); gradient checkpointing is off. Only its batches, its training step and its optimizer are timed, on our side the
same.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from ppo import SIZES, make_models
from sides import Answer, Side, Work, asked, environment, median, ratio

DEMONSTRATIONS, BATCH, LONGEST = 64, 16, 256
MODES = ("padded", "grouped", "packed")
AGREE = 1e-4


def make_demonstrations(vocabulary: int) -> list[tuple[list[int], list[int]]]:
    """Prompts and completions of 8 to 128 tokens each, short ones more often: the logarithm is even."""
    draw = random.Random(0)
    length = lambda: round(8 * 16 ** draw.random())  # noqa: E731
    text = lambda: [draw.randrange(3, vocabulary) for _ in range(length())]  # noqa: E731
    return [(text(), text()) for _ in range(DEMONSTRATIONS)]


# --- the two sides: one pass over all demonstrations, -> mean loss a completion token --------------------------------


def ours(folder: Path) -> Work:
    """`language_loss` and `descend`, as the stage runs them."""
    import torch

    from instructgpt.data.packing import TokenizedExample
    from instructgpt.models.policy import load_policy
    from instructgpt.train.optim import build_optimizer, lm_loss, optimizer_step

    model, _ = load_policy(folder / "policy", torch.device("cpu"))
    optimizer = build_optimizer(model)
    examples = [
        TokenizedExample(prompt, completion) for prompt, completion in make_demonstrations(model.config.vocab_size)
    ]

    def work(_: Any) -> float:
        total = 0.0
        for start in range(0, len(examples), BATCH):
            batch = examples[start : start + BATCH]
            total += lm_loss(model, batch) * sum(len(example.completion_ids) for example in batch)
            optimizer_step(optimizer, 0.0)
        return total / sum(len(example.completion_ids) for example in examples)

    return work


def peers(folder: Path) -> Work:
    """SFTTrainer's own batches, `training_step` and optimizer, in one of its modes; its loop is left out."""
    import datasets
    import torch
    import transformers
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    quiet = {
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "logging_strategy": "no",
        "save_strategy": "no",
    }
    common = {
        "output_dir": str(folder / "trl"),
        "gradient_checkpointing": False,
        "bf16": False,
        "learning_rate": 0.0,
        "completion_only_loss": True,
        **quiet,
    }
    modes = {
        "padded": {"per_device_train_batch_size": BATCH},
        "grouped": {"per_device_train_batch_size": BATCH, "train_sampling_strategy": "group_by_length"},
        "packed": {"per_device_train_batch_size": 1, "packing": True, "packing_strategy": "bfd", "max_length": LONGEST},
    }
    trainers = {}
    for name, options in modes.items():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
        demonstrations = make_demonstrations(model.config.vocab_size)
        rows = [{"input_ids": p + c, "completion_mask": [0] * len(p) + [1] * len(c)} for p, c in demonstrations]
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "policy")
        config = SFTConfig(**{"max_length": None, **common, **options})
        trainer = SFTTrainer(model, config, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer)
        trainer.create_optimizer()
        trainer.current_gradient_accumulation_steps = 1
        trainers[name] = trainer

    def work(mode: str) -> float:
        trainer, total, count = trainers[mode], 0.0, 0
        batches = trainer.get_train_dataloader()
        every = max(
            1, len(batches) * BATCH // DEMONSTRATIONS
        )  # as many optimizer steps as ours, where rows hold several demonstrations
        for number, batch in enumerate(batches, 1):
            tokens = int((batch["labels"] != -100).sum())
            total, count = total + float(trainer.training_step(trainer.model, batch)) * tokens, count + tokens
            if number % every:
                continue
            torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
            trainer.optimizer.step()
            trainer.model.zero_grad(set_to_none=True)
        return total / count

    return work


def compare(us: Side, them: Side, size: str, mode: str, rounds: int) -> str:
    """A row of the table: the same loss, then turns."""
    loss, other = us.ask(None).said, them.ask(mode).said
    if abs(loss - other) > AGREE:
        sys.exit(f"{size}, {mode}: our loss a token is {loss}, theirs {other}")
    turns: list[tuple[Answer, Answer]] = [(us.ask(None), them.ask(mode)) for _ in range(rounds)]
    ours_, theirs = ([turn[side] for turn in turns] for side in (0, 1))
    tokens = sum(len(p) + len(c) for p, c in make_demonstrations(SIZES[size]["vocab_size"]))
    rates = f"{tokens / median(ours_):.0f} | {tokens / median(theirs):.0f}"
    return (
        f"| {size} | {mode} | {loss:.5f} | {other:.5f} | {rates} | {ratio(ours_, theirs):.2f} | "
        f"{ratio(ours_, theirs, 'wall'):.2f} |"
    )


def main() -> None:
    """Compare at both sizes with every mode, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns that count")
    parser.add_argument("--size", choices=tuple(SIZES), nargs="*", default=("5.8M", "0.9M"))
    parser.add_argument("--mode", choices=MODES, nargs="*", default=MODES)
    options = asked(parser, {"ours": ours, "theirs": peers})
    print("| size | TRL's mode | our loss | TRL's | our tokens/s of CPU time | TRL's | ratio | on the clock |")
    for size in options.size:
        with tempfile.TemporaryDirectory() as folder:
            make_models(size, Path(folder))
            us = Side(sys.executable, __file__, "ours", Path(folder))
            them = Side(environment(".bench-trl", "trl==1.16.0"), __file__, "theirs", Path(folder))
            for mode in options.mode:
                print(compare(us, them, size, mode, options.rounds), flush=True)
            us.end()
            them.end()


if __name__ == "__main__":
    main()
