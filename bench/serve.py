"""Serving, ours beside `transformers serve`: same weights, same prompts, one thread each, taking turns.

    python bench/serve.py                                   # 1, 8, 32 and 64 clients
    python bench/serve.py --memory 10000                    # the server's memory over so many requests

The model is a random Llama whose completions of 64 tokens rarely end early, and whose tokens are text: a server that
sends no incomplete characters would else seem late. Clients are threads that stream chat
completions at temperature 1. Rates are completion tokens over the server's CPU seconds and over wall seconds; on a
shared machine compare the first. First-token time is the median from sending a request to its first text.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import httpx
import torch
import transformers

from instructgpt.data.pretraining_text import train_tokenizer

MAX_TOKENS, VOCABULARY, TICKS = 64, 4_096, os.sysconf("SC_CLK_TCK")
TEXTS = [f"Which of the {i} frogs by the sea number {i * 7} is green, and why? Answer in a line." for i in range(300)]


@dataclass(frozen=True)
class Server:
    """A running server."""

    name: str
    url: str
    pid: int

    def cpu_seconds(self) -> float:
        words = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / TICKS

    def resident_mib(self) -> float:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def make_model(folder: Path) -> None:
    """Save a random Llama of about 5 million parameters; nearly all tokens of its vocabulary are text."""
    rng = random.Random(0)
    syllables = [first + vowel + last for first in "bdfgklmnprst" for vowel in "aeiou" for last in "lnrst"]
    syllable_words = (" ".join("".join(rng.choices(syllables, k=3)) for _ in range(200)) for _ in range(100))
    words = train_tokenizer([*TEXTS, *syllable_words], VOCABULARY)
    assert len(words) == VOCABULARY
    words.chat_template = "{% for message in messages %}{{ message['content'] + '\\n' }}{% endfor %}"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=1_024,
        tie_word_embeddings=True,
        eos_token_id=words.eos_token_id,
        bos_token_id=None,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)


@contextlib.contextmanager
def run_server(name: str, command: Sequence[str], port: int) -> Iterator[Server]:
    """Start a server and wait until it answers a request."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        server = Server(name, f"http://127.0.0.1:{port}/v1", process.pid)
        try:
            while True:
                if process.poll() is not None:
                    sys.exit(f"{name} ended with {process.returncode}")
                with contextlib.suppress(httpx.HTTPError, KeyError, ValueError):
                    if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                        break
                time.sleep(0.5)
            yield server
        finally:
            process.terminate()
            process.wait()


def stream(client: httpx.Client, url: str, model: str, number: int) -> tuple[int, float]:
    """Send one request; return its completion tokens and the time to its first text."""
    fields = {
        "model": model,
        "messages": [{"role": "user", "content": TEXTS[number % len(TEXTS)]}],
        "max_tokens": MAX_TOKENS,
        "temperature": 1.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    start, first, tokens = time.perf_counter(), None, 0
    with client.stream("POST", f"{url}/chat/completions", json=fields) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if first is None and any(choice["delta"].get("content") for choice in chunk.get("choices") or ()):
                first = time.perf_counter() - start
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
    return tokens, time.perf_counter() - start if first is None else first


def load(server: Server, model: str, clients: int, requests: int) -> tuple[float, float, float]:
    """Send requests from many clients; return tokens a CPU second, tokens a wall second and the first-token time."""
    numbers, results, lock = iter(range(requests)), [], threading.Lock()

    def work() -> None:
        with httpx.Client(timeout=600) as client:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                results.append(stream(client, server.url, model, number))

    cpu, wall = server.cpu_seconds(), time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tokens = sum(tokens for tokens, _ in results)
    cpu, wall = server.cpu_seconds() - cpu, time.perf_counter() - wall
    return tokens / cpu, tokens / wall, statistics.median(first for _, first in results)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--memory", type=int, default=0, help="requests after which memory is compared")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        make_model(Path(folder))
        ports = free_port(), free_port()
        ours = [sys.executable, "-m", "instructgpt", "serve", "--model", folder, "--port", str(ports[0])]
        transformers_command = str(Path(sys.executable).with_name("transformers"))
        theirs = [transformers_command, "serve", folder, "--continuous-batching", "--device", "cpu"]
        theirs += ["--dtype", "float32", "--port", str(ports[1])]
        servers = [(stack.enter_context(run_server("instructgpt", ours, ports[0])), Path(folder).name)]
        if options.memory:
            measure_memory(*servers[0], options.memory)
            return
        servers.append((stack.enter_context(run_server("transformers", theirs, ports[1])), folder))
        for server, model in servers:
            load(server, model, 2, 4)
        print("clients  server        tokens/CPU s  tokens/s  first token")
        for clients in options.clients:
            rates = []
            for server, model in servers:
                rates.append(load(server, model, clients, max(8, 2 * clients)))
                cpu_rate, wall_rate, first = rates[-1]
                print(f"{clients:7}  {server.name:12}  {cpu_rate:12.0f}  {wall_rate:8.0f}  {first:9.2f} s", flush=True)
            print(f"{clients:7}  ratio         {rates[0][0] / rates[1][0]:12.2f}  {rates[0][1] / rates[1][1]:8.2f}")


def measure_memory(server: Server, model: str, requests: int) -> None:
    """Print the server's memory as requests go by."""
    for part in range(11):
        print(f"{part * requests // 10:7} requests  {server.resident_mib():7.1f} MiB", flush=True)
        if part < 10:
            load(server, model, 8, requests // 10)


if __name__ == "__main__":
    main()
