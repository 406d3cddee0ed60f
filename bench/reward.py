"""Reward training, ours beside TRL's RewardTrainer: same weights, same rankings, one thread, taking turns.

    python bench/reward.py            # everything; the first time it makes .bench-trl, TRL's own virtual environment
    python bench/reward.py --rounds 3 --model llama

Two processes hold the same random model. For each K they are first asked for the loss of the same pairs, which must
agree; then they take turns at one pass over the same rankings, forward and backward. RewardTrainer trains on pairs, so
a ranking of K completions is K (K - 1) / 2 of its rows. It runs at its best: gradient checkpointing off, and nothing
but collating, its loss and the backward pass is timed, as on our side.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sides import Side, Work, asked, environment, median, ratio

VOCABULARY, CONTEXT = 4096, 1024
RANKINGS = {4: 2, 9: 1}
"""Rankings in a pass, for each K."""


def make_model(family: str, folder: Path) -> None:
    """Save a random sequence classifier of about 5.8 million parameters, without dropout."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    shared: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "num_labels": 1,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if family == "llama":
        sizes = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 8}
        llama = transformers.LlamaConfig(**sizes, intermediate_size=688, max_position_embeddings=CONTEXT, **shared)
        model = transformers.LlamaForSequenceClassification(llama)
    else:
        no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        gpt2 = transformers.GPT2Config(n_embd=256, n_layer=6, n_head=8, n_positions=CONTEXT, **no_dropout, **shared)
        model = transformers.GPT2ForSequenceClassification(gpt2)
    model.save_pretrained(folder)


def make_rankings(k: int) -> list[tuple[list[int], list[list[int]]]]:
    """Prompts of 200 to 400 tokens with K completions of 50 to 70, best first."""
    draw = random.Random(k)
    tokens = lambda low, high: [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(low, high))]  # noqa: E731
    return [(tokens(200, 400), [tokens(50, 70) for _ in range(k)]) for _ in range(RANKINGS[k])]


# --- the two sides: each takes a model and rankings and gives one pass, forward and backward, -> mean ranking loss ----


def ours(folder: Path) -> Callable[[list[Any]], float]:
    """`ranking_step`, as the stage runs it."""
    import torch
    import transformers

    from instructgpt.data.packing import TokenizedExample
    from instructgpt.data.rankings import LabelerRanks, RankedPrompt
    from instructgpt.models.packed_attention import use_packed_attention
    from instructgpt.models.reward_model import ScalarModel
    from instructgpt.train.reward import ranking_backward

    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    use_packed_attention(model)
    reward = ScalarModel(model, None)  # type: ignore[arg-type]

    def one_pass(rankings: list[Any]) -> float:
        ranked = [
            RankedPrompt(
                [TokenizedExample(prompt, c) for c in completions],
                (LabelerRanks(tuple(range(len(completions))), None, "training"),),
                "",
            )
            for prompt, completions in rankings
        ]
        loss, _ = ranking_backward(reward, ranked)
        model.zero_grad(set_to_none=True)
        return loss

    return one_pass


def peers(folder: Path) -> Callable[[list[Any]], float]:
    """RewardTrainer's own collator and `compute_loss` over all pairs of the rankings, a ranking a batch;
    its loop is left out.
    """
    import datasets
    import tokenizers
    import torch
    import transformers
    from trl import RewardConfig, RewardTrainer

    datasets.disable_progress_bars()
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({str(i): i for i in range(VOCABULARY)}, unk_token="1"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="0", bos_token="1", eos_token="2"
    )
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    quiet = {
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "logging_strategy": "no",
        "save_strategy": "no",
    }
    config = RewardConfig(
        output_dir=str(folder / "trl"), gradient_checkpointing=False, bf16=False, max_length=None, **quiet
    )
    one_row = datasets.Dataset.from_list([{"chosen_ids": [3, 4], "rejected_ids": [3, 5]}])
    trainer = RewardTrainer(model=model, args=config, train_dataset=one_row, processing_class=tokenizer)

    def one_pass(rankings: list[Any]) -> float:
        losses = []
        for prompt, completions in rankings:
            pairs = itertools.combinations(completions, 2)
            batch = trainer.data_collator(
                [{"chosen_ids": prompt + better, "rejected_ids": prompt + worse} for better, worse in pairs]
            )
            loss = trainer.compute_loss(trainer.model, batch)
            loss.backward()
            losses.append(float(loss))
        trainer.model.zero_grad(set_to_none=True)
        return sum(losses) / len(losses)

    return one_pass


def work(side: Callable[[Path], Callable[[list[Any]], float]]) -> Callable[[Path], Work]:
    """A side that is asked for one pass at some K. -> the loss."""

    def make(folder: Path) -> Work:
        one_pass = side(folder)
        return lambda k: one_pass(make_rankings(k))

    return make


def compare(us: Side, them: Side, k: int, rounds: int) -> str:
    """A row of the table: the same loss, then rounds of turns. The first round warms up and does not count."""
    loss, their_loss = us.ask(k).said, them.ask(k).said
    if abs(loss - their_loss) > 1e-4:
        sys.exit(f"K = {k}: our loss is {loss}, theirs {their_loss}")
    turns = [(us.ask(k), them.ask(k)) for _ in range(rounds)]
    mine, theirs = zip(*turns, strict=True)
    our_rate, their_rate = RANKINGS[k] / median(mine), RANKINGS[k] / median(theirs)
    ratios = f"{ratio(mine, theirs):.1f} | {ratio(mine, theirs, 'wall'):.1f}"
    return f"| {k} | {loss:.6f} | {their_loss:.6f} | {our_rate:.2f} | {their_rate:.3f} | {ratios} |"


def main() -> None:
    """Compare both families, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns that count")
    parser.add_argument("--model", choices=("llama", "gpt2"), nargs="*", default=("llama", "gpt2"))
    options = asked(parser, {"ours": work(ours), "theirs": work(peers)})
    for family in options.model:
        with tempfile.TemporaryDirectory() as folder:
            make_model(family, Path(folder))
            us = Side(sys.executable, __file__, "ours", Path(folder))
            them = Side(environment(".bench-trl", "trl==1.16.0"), __file__, "theirs", Path(folder))
            print(
                f"\n{family}: | K | our loss | TRL's loss | our rankings/s of CPU time | TRL's | ratio | on the clock "
                "|",
                flush=True,
            )
            for k in RANKINGS:
                print(compare(us, them, k, options.rounds), flush=True)
            for side in (us, them):
                side.end()


if __name__ == "__main__":
    main()
