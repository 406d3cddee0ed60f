"""A small chat model and conversations for recipes/chat-model.yaml, made from public data, and the recipe's run.

    python bench/chat_model.py DATA OUT                # files, model, run: 30 minutes on two cores
    python bench/chat_model.py DATA OUT --only files   # or model, run; each is left alone where it is there

DATA holds pretrain/, demonstrations/ and rankings/ as recipes/real-small.yaml names them. The model is a Llama of a
million parameters with a ChatML template, pretrained on encyclopedia text and on rendered conversations. Demonstrations,
rankings and prompts are conversations of HH-RLHF's harmlessness test set, as `messages`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import tokenizers
import transformers

from instructgpt.data.splits import is_heldout
from instructgpt.io import iter_rows
from instructgpt.records import Ranking

ROOT = Path(__file__).parents[1]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
END_OF_TEXT, TURN_TOKENS = "<|endoftext|>", ["<|im_start|>", "<|im_end|>"]
VOCABULARY = 2048
MODEL = {"width": 128, "layers": 4, "heads": 4, "context": 512, "window": 256, "batch": 8, "lr": 3e-3}
TOKENS = 400_000
DOCUMENTS, CONVERSATIONS = 60, 6000
MAX_CHARACTERS = 900
"""Conversations that are longer than this, prompt and longest completion, are left out."""


def read(path: Path) -> Iterator[dict[str, Any]]:
    return (row for _, row in iter_rows(path))


def import_rankings(data: Path, out: Path) -> list[dict[str, Any]]:
    """Turn the transcripts of the rankings into messages with `instructgpt data import`."""
    run("data", "import", "--data", data / "rankings" / "hh_harmless_test.jsonl.gz", "--to", "rankings", "--out", out)
    return [row for row in read(out) if "messages" in row and length(row) <= MAX_CHARACTERS]


def length(row: dict[str, Any]) -> int:
    return sum(len(message["content"]) for message in row["messages"]) + max(map(len, row["completions"]))


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_files(data: Path, folder: Path) -> None:
    """Write conversations: demonstrations are the completions that people preferred."""
    folder.mkdir(parents=True, exist_ok=True)
    rankings = import_rankings(data, folder / "imported.jsonl")
    demonstrations = [
        {"messages": row["messages"], "completion": row["completions"][row["ranks"].index(1)]} for row in rankings
    ]
    write(folder / "rankings.jsonl", rankings)
    write(folder / "demonstrations.jsonl", demonstrations)
    texts = [row["text"] for row in islice(read(data / "pretrain" / "enwiki-00.jsonl.gz"), DOCUMENTS)]
    write(folder / "text.jsonl", ({"text": text} for text in texts))
    tokenizer = train_tokenizer([*texts, *(row["completion"] for row in demonstrations)])
    tokenizer.save_pretrained(folder / "tokenizer")
    chats = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        for row in islice(read(data / "demonstrations" / "gpteacher.jsonl.gz"), CONVERSATIONS)
    ]
    chats += [  # the conversations before the ranked turn; those that are held out stay unseen
        row["messages"] for row in rankings if not is_heldout(Ranking.model_validate(row).prompt)
    ]
    rendered = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
    write(folder / "corpus.jsonl", ({"text": text} for text in [*texts, *rendered]))


def train_tokenizer(texts: list[str]) -> Any:
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, *TURN_TOKENS],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END_OF_TEXT, additional_special_tokens=TURN_TOKENS
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.model_max_length = MODEL["context"]
    return tokenizer


def run(*arguments: object) -> None:
    """Run a command of instructgpt, and print its seconds of CPU and of the clock."""
    start, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "instructgpt", *map(str, arguments)], check=True)
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    print(f"{arguments[0]}: {cpu:.0f} s of CPU, {time.monotonic() - start:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", choices=("files", "model", "run"), action="append")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens of the pretraining")
    options = parser.parse_args()
    files, model = options.out / "files", options.out / "model"
    steps = options.only or ("files", "model", "run")
    if "files" in steps:
        write_files(options.data, files)
    if "model" in steps:
        sizes = [part for name, value in MODEL.items() for part in (f"--{name}", value)]
        texts = ("--corpus", files / "corpus.jsonl", "--tokenizer", files / "tokenizer", "--tokens", options.tokens)
        run("pretrain", *texts, *sizes, "--no-keep-state", "--out", model)
    if "run" in steps:
        recipe = ("--config", ROOT / "recipes" / "chat-model.yaml", "--data", files)
        run("run", *recipe, "--base", model, "--out", options.out / "run")


if __name__ == "__main__":
    main()
