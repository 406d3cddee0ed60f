"""Reward training, ours beside TRL's RewardTrainer: same weights, same rankings, one thread, taking turns.

    python bench/reward.py            # everything; the first time it makes .bench-trl, TRL's own virtual environment
    python bench/reward.py --rounds 3 --model llama

Two processes hold the same random model. For each K they are first asked for the loss of the same pairs, which must agree;
then they take turns at one pass over the same rankings, forward and backward. RewardTrainer trains on pairs, so a ranking
of K completions is K (K - 1) / 2 of its rows. It runs at its best: gradient checkpointing off, and nothing but
collating, its loss and the backward pass is timed, as on our side.
Last comes what a ranking costs us for K from 2 to 16.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PEER = ROOT / ".bench-trl"
PINNED = ("torch==2.13.0", "trl==1.16.0", "transformers==5.23.0", "accelerate==1.15.0", "datasets==5.2.0")
VOCABULARY, CONTEXT = 4096, 1024
RANKINGS = {2: 4, 4: 2, 6: 2, 8: 1, 9: 1, 12: 1, 16: 1}
"""Rankings in a pass, for each K."""


def make_model(family: str, folder: Path) -> None:
    """Save a random sequence classifier of about 5.8 million parameters, without dropout."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    shared: dict[str, Any] = {"vocab_size": VOCABULARY, "num_labels": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if family == "llama":
        sizes = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 8}
        llama = transformers.LlamaConfig(**sizes, intermediate_size=688, max_position_embeddings=CONTEXT, **shared)
        model = transformers.LlamaForSequenceClassification(llama)
    else:
        no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        gpt2 = transformers.GPT2Config(n_embd=256, n_layer=6, n_head=8, n_positions=CONTEXT, **no_dropout, **shared)
        model = transformers.GPT2ForSequenceClassification(gpt2)
    model.save_pretrained(folder)


def make_rankings(k: int, count: int, even: bool) -> list[tuple[list[int], list[list[int]]]]:
    """Prompts of 200 to 400 tokens with K completions of 50 to 70, best first; `even`: of 300 and 60."""
    draw = random.Random(k)
    lengths = ((300, 300), (60, 60)) if even else ((200, 400), (50, 70))
    tokens = lambda low, high: [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(low, high))]  # noqa: E731
    return [(tokens(*lengths[0]), [tokens(*lengths[1]) for _ in range(k)]) for _ in range(count)]


# --- the two sides: each takes a model and rankings and gives one pass, forward and backward, -> mean ranking loss ----


def ours(folder: Path) -> Callable[[list[Any]], float]:
    """`ranking_step`, as the stage runs it."""
    import torch
    import transformers

    from instructgpt.data.batches import Example
    from instructgpt.data.tasks import Order, Task
    from instructgpt.models.attention import use_packed_attention
    from instructgpt.models.scalar import ScalarModel
    from instructgpt.train.reward import ranking_step

    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    use_packed_attention(model)
    reward = ScalarModel(model, None)  # type: ignore[arg-type]

    def one_pass(rankings: list[Any]) -> float:
        tasks = [
            Task([Example(prompt, c) for c in completions], (Order(tuple(range(len(completions))), None, "training"),), "")
            for prompt, completions in rankings
        ]
        loss, _ = ranking_step(reward, tasks)
        model.zero_grad(set_to_none=True)
        return loss

    return one_pass


def peers(folder: Path) -> Callable[[list[Any]], float]:
    """RewardTrainer's own collator and `compute_loss` over all pairs of the rankings, a ranking a batch; its loop is left out."""
    import datasets
    import tokenizers
    import torch
    import transformers
    from trl import RewardConfig, RewardTrainer

    datasets.disable_progress_bars()
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({str(i): i for i in range(VOCABULARY)}, unk_token="1"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", bos_token="1", eos_token="2")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_strategy": "no", "save_strategy": "no"}
    config = RewardConfig(output_dir=str(folder / "trl"), gradient_checkpointing=False, bf16=False, max_length=None, **quiet)
    one_row = datasets.Dataset.from_list([{"chosen_ids": [3, 4], "rejected_ids": [3, 5]}])
    trainer = RewardTrainer(model=model, args=config, train_dataset=one_row, processing_class=tokenizer)

    def one_pass(rankings: list[Any]) -> float:
        losses = []
        for prompt, completions in rankings:
            pairs = itertools.combinations(completions, 2)
            batch = trainer.data_collator([{"chosen_ids": prompt + better, "rejected_ids": prompt + worse} for better, worse in pairs])
            loss = trainer.compute_loss(trainer.model, batch)
            loss.backward()
            losses.append(float(loss))
        trainer.model.zero_grad(set_to_none=True)
        return sum(losses) / len(losses)

    return one_pass


def serve(side: Callable[[Path], Callable[[list[Any]], float]], folder: Path) -> None:
    """Answer requests, JSON lines of K and whether lengths are even: one pass over its rankings. -> loss and seconds."""
    import torch

    torch.set_num_threads(1)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes elsewhere
    one_pass = side(folder)
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        k, even = json.loads(line)
        rankings = make_rankings(k, RANKINGS[k], even)
        start = time.perf_counter()
        loss = one_pass(rankings)
        print(json.dumps([loss, time.perf_counter() - start]), file=out, flush=True)


class Side:
    """A process that holds one side."""

    def __init__(self, python: Path, name: str, folder: Path) -> None:
        """Start it and wait until its model is loaded."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT / "src")}
        command = [str(python), __file__, "--serve", name, "--folder", str(folder)]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment
        )
        self.answer()

    def answer(self) -> str:
        """Its next line."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            sys.exit(f"a side has ended:\n{self.errors.read()[-2000:]}")
        return line

    def one_pass(self, k: int, even: bool = False) -> tuple[float, float]:
        """Loss and seconds of one pass over the rankings of K."""
        assert self.process.stdin
        print(json.dumps([k, even]), file=self.process.stdin, flush=True)
        loss, seconds = json.loads(self.answer())
        return loss, seconds

    def end(self) -> None:
        """Let it go."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def peer_python() -> Path:
    """The Python of TRL's virtual environment, which is made where it is missing."""
    python = PEER / "bin" / "python"
    done = PEER / "installed"
    if not done.exists() or done.read_text() != "\n".join(PINNED):
        print(f"making {PEER.name} with {', '.join(PINNED)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(PEER)], check=True)
        for packages in (PINNED[:1], PINNED):  # torch first and alone, so that nothing else chooses its build
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        done.write_text("\n".join(PINNED))
    return python


def compare(us: Side, them: Side, k: int, rounds: int) -> str:
    """A row of the table: the same loss, then rounds of turns. The first round warms up and does not count."""
    (loss, _), (their_loss, _) = us.one_pass(k), them.one_pass(k)
    if abs(loss - their_loss) > 1e-4:
        sys.exit(f"K = {k}: our loss is {loss}, theirs {their_loss}")
    turns = [(us.one_pass(k)[1], them.one_pass(k)[1]) for _ in range(rounds)]
    mine, theirs = (RANKINGS[k] / statistics.median(times) for times in zip(*turns, strict=True))
    ratio = statistics.median(their / our for our, their in turns)
    return f"| {k} | {loss:.6f} | {their_loss:.6f} | {mine:.2f} | {theirs:.3f} | {ratio:.1f} |"


def main() -> None:
    """Compare both families, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns that count")
    parser.add_argument("--model", choices=("llama", "gpt2"), nargs="*", default=("llama", "gpt2"))
    parser.add_argument("--growth", action="store_true", help="only what a ranking costs us for each K")
    parser.add_argument("--serve", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve({"ours": ours, "theirs": peers}[options.serve], options.folder)
        return
    for family in options.model:
        with tempfile.TemporaryDirectory() as folder:
            make_model(family, Path(folder))
            us = Side(Path(sys.executable), "ours", Path(folder))
            if not options.growth:
                them = Side(peer_python(), "theirs", Path(folder))
                print(f"\n{family}: | K | our loss | TRL's loss | our rankings/s | TRL's | ratio |", flush=True)
                for k in (4, 9):
                    print(compare(us, them, k, options.rounds), flush=True)
                them.end()
            print(f"\n{family}: | K | seconds a ranking, ours | beside K = 2 |", flush=True)
            turns = [{k: us.one_pass(k, even=True)[1] / count for k, count in RANKINGS.items()} for _ in range(options.rounds + 1)]
            cost = {k: statistics.median(turn[k] for turn in turns[1:]) for k in RANKINGS}
            for k, seconds in cost.items():
                print(f"| {k} | {seconds:.3f} | {seconds / cost[2]:.2f} |", flush=True)
            us.end()


if __name__ == "__main__":
    main()
