"""The commands `sample` and `score`: blocks, resuming after kills, stop texts, progress."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from instructgpt.cli import run_command
from instructgpt.errors import InputError
from instructgpt.models.policy import load_policy
from instructgpt.records import Completion, Prompt, read_records
from instructgpt.run import progress, resumable_file
from instructgpt.run.resumable_file import open_resumable_file
from instructgpt.sampling import cli
from instructgpt.sampling.completions import generate
from instructgpt.sampling.stop_strings import cut_at_stop

PROMPTS = [{"prompt": text, "id": str(index)} for index, text in enumerate(("a b", "c", "the cat sat", "d e f", "b"))]
SIZE = ["--max-tokens", "8", "-n", "3", "--seed", "5"]


@pytest.fixture
def prompts(write):
    return str(write("prompts.jsonl", PROMPTS))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(cli, "_MAX_BLOCK_ROWS", {"cpu": 4})


def sample(model, prompts, out, *more) -> int:
    return run_command(["sample", "--model", str(model), "--prompts", prompts, "--out", str(out), *SIZE, *more])


def test_blocks_sample_the_same_completions_as_one_call(save, prompts, tmp_path):
    assert sample(save(), prompts, tmp_path / "c.jsonl") == 0
    model, tokenizer = load_policy(str(save()), "cpu")
    expected = generate(model, tokenizer, [Prompt(**row) for row in PROMPTS], max_tokens=8, seed=5, per_prompt=3)
    written = read_records(Completion, tmp_path / "c.jsonl")
    assert [row.completion for row in written] == [row.text for row in expected]
    assert [row.to_dict()["id"] for row in written] == [str(row // 3) for row in range(15)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.jsonl", "prompts.jsonl"]


KILLS = """
import os, random, signal, sys, time
from instructgpt.cli import run_command
from instructgpt.sampling import cli
cli._MAX_BLOCK_ROWS = {"cpu": 4}
part = sys.argv[-1] + ".part"
moment = random.Random(3)
size = lambda: os.path.getsize(part) if os.path.exists(part) else 0
for kill in range(21):
    before, process = size(), os.fork()
    if process == 0:
        os._exit(run_command(sys.argv[1:]))
    if kill == 20:
        _, status = os.waitpid(process, 0)
        sys.exit(os.waitstatus_to_exitcode(status))
    if kill % 4 == 0:
        time.sleep(moment.uniform(0, 0.3))
    else:  # while it writes
        growth, ended = moment.randint(1, 1200), 0
        while size() < before + growth and not ended:
            time.sleep(0.002)
            ended = os.waitpid(process, os.WNOHANG)[0]
        if ended:
            sys.exit(0 if kill > 10 else f"it ended before kill {kill}")
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status), "it ended before it could be killed"
"""


@pytest.mark.parametrize("command", ["sample", pytest.param("score", marks=pytest.mark.slow)])
def test_killed_at_random_moments_the_file_equals_an_undisturbed_one(command, save, save_reward, write, tmp_path):
    model = str(save_reward()) if command == "score" else str(save())
    prompts = str(write("p.jsonl", PROMPTS * (40 if command == "score" else 12)))
    argv = ["sample", "--model", str(save()), "--prompts", prompts, *SIZE]
    if command == "score":
        assert run_command([*argv, "--out", str(tmp_path / "c.jsonl")]) == 0
        argv = ["score", "--reward", model, "--data", str(tmp_path / "c.jsonl")]
    assert run_command([*argv, "--out", str(tmp_path / "whole.jsonl")]) == 0
    done = subprocess.run(
        [sys.executable, "-c", KILLS, *argv, "--out", str(tmp_path / "killed.jsonl")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "resuming: " in done.stdout
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not (tmp_path / "killed.jsonl.part").exists()


ROWS = [Completion(prompt=f"p{index}", completion="x" * index + "é", model="m") for index in range(10)]


def write_all(out: Path, *, resume: bool = True, source: str = "a", stop_after: int = 99) -> int:
    """Write ROWS in blocks of 3, or 5 if it goes on with a file of blocks of 5. Return how many were there."""
    with open_resumable_file(out, {"source": source}, 3, resume=resume) as file:
        before = file.count
        while file.count < len(ROWS):
            if file.count >= stop_after:
                return before
            file.append(ROWS[file.count : file.count + file.block])
        file.finish()
    return before


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_a_file_torn_at_any_byte_is_completed(name, tmp_path):
    out = tmp_path / name
    write_all(out)
    whole = out.read_bytes()
    text = gzip.decompress(whole) if name.endswith(".gz") else whole
    write_all(out, stop_after=10)
    part = resumable_file.part_path(out)
    with open_resumable_file(out, {"source": "a"}, 3, resume=True) as file:
        file.append(ROWS[:9])
    everything = part.read_bytes()
    header_length = everything.index(b"\n") + 1
    assert everything[header_length:] == b"".join(text.splitlines(keepends=True)[:9])
    for length in range(0, len(everything) + 1, 23):
        part.write_bytes(everything[:length])
        complete_lines = everything[header_length:length].count(b"\n")
        assert write_all(out) == complete_lines // 3 * 3
        assert out.read_bytes() == whole
        assert not part.exists()


def test_the_block_size_of_an_unfinished_file_stays(tmp_path):
    with open_resumable_file(tmp_path / "r.jsonl", {"source": "a"}, 5, resume=True) as file:
        file.append(ROWS[:5])
    with open_resumable_file(tmp_path / "r.jsonl", {"source": "a"}, 3, resume=True) as file:
        assert (file.count, file.block) == (5, 5)


def test_an_unfinished_file_of_something_else_is_never_lost(tmp_path):
    out = tmp_path / "r.jsonl"
    write_all(out, stop_after=3)
    with pytest.raises(InputError, match=r"another source \(a, now b\); use that one, or start again with --no-resume"):
        write_all(out, source="b")
    assert write_all(out, source="b", resume=False) == 0
    write_all(out, stop_after=3)
    with (
        open_resumable_file(out, {"source": "a"}, 3, resume=True),
        pytest.raises(InputError, match="another command is writing it"),
    ):
        write_all(out)
    (tmp_path / "mine.jsonl.part").write_text("my own notes\n")
    for resume in (True, False):
        with pytest.raises(InputError, match=r"mine\.jsonl\.part: is not an unfinished file"):
            write_all(tmp_path / "mine.jsonl", resume=resume)
    assert (tmp_path / "mine.jsonl.part").read_text() == "my own notes\n"


def test_other_options_prompts_or_weights_are_refused(save, prompts, write, tmp_path, monkeypatch, capsys):
    out = tmp_path / "c.jsonl"
    calls = []

    def fail_second(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(*arguments, **options)

    monkeypatch.setattr(cli, "generate", fail_second)
    assert sample(save(), prompts, out) == 1
    assert capsys.readouterr().err == "instructgpt: interrupted; run the same command to resume\n"
    assert len((tmp_path / "c.jsonl.part").read_text().splitlines()) == 5
    assert sample(save(), prompts, out, "--temperature", "0.5") == 2
    assert "another temperature (1.0, now 0.5)" in capsys.readouterr().err
    assert sample(save(), str(write("q.jsonl", PROMPTS[:4])), out) == 2
    assert "another prompts" in capsys.readouterr().err
    assert sample(save("gpt2"), prompts, out) == 2
    assert sample(save(), prompts, out) == 0
    assert "resuming: 4 records are in" in capsys.readouterr().out


def test_stop_texts_end_a_completion(save, prompts, tmp_path):
    assert sample(save(), prompts, tmp_path / "plain.jsonl") == 0
    plain = read_records(Completion, tmp_path / "plain.jsonl")
    letter = next(row.completion[2] for row in plain if len(row.completion) > 3)
    assert sample(save(), prompts, tmp_path / "cut.jsonl", "--stop", letter, "@@") == 0
    cut = read_records(Completion, tmp_path / "cut.jsonl")
    assert [row.completion for row in cut] == [row.completion.partition(letter)[0] for row in plain]
    for row, uncut in zip(cut, plain, strict=True):
        assert row.finish == ("stop" if letter in uncut.completion else uncut.finish)
    assert cut[0].sampling["stop"] == [letter, "@@"]


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one\ntwo", ["\n"], ("one", True)),
        ("one. two", ["two", "."], ("one", True)),
        ("one", ["x"], ("one", False)),
        ("one", [], ("one", False)),
        ("xone", ["x"], ("", True)),
    ],
)
def test_text_is_cut_at_the_first_stop(text, stop, expected):
    assert cut_at_stop(text, stop) == expected


def test_progress_shows_rate_and_time_left(save, prompts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "PROGRESS_INTERVAL_S", -1.0)
    assert sample(save(), prompts, tmp_path / "c.jsonl") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("sample: ")]
    assert [line.partition(",")[0] for line in lines] == [f"sample: {n} of 15" for n in (4, 8, 12, 15)]
    assert all("/s, " in line and line.endswith(" left") for line in lines)


def test_progress_is_a_bar_on_a_terminal(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=screen, force_terminal=True, width=80))
    with progress.show_progress("sample", 15, 4) as advance:
        advance(11)
    assert "15/15" in screen.getvalue()
    assert "sample" in screen.getvalue()


def test_how_the_model_is_computed_is_printed(save, save_reward, prompts, tmp_path, capsys):
    completions = tmp_path / "c.jsonl"
    assert sample(save(), prompts, completions) == 0
    printed = capsys.readouterr().out
    assert "family llama: packed batches" in printed
    assert "sampling with a KV cache, without CUDA graphs" in printed
    score = ["score", "--reward", str(save_reward()), "--data", str(completions), "--out", str(tmp_path / "s.jsonl")]
    assert run_command(score) == 0
    printed = capsys.readouterr().out
    assert "family llama: packed batches (packed sdpa attention); context" in printed


def test_scores_of_blocks_are_those_of_the_model(save_reward, reward, write, tmp_path, rows_of):
    data = write("c.jsonl", [{"prompt": "a b", "completion": f"c {index}", "extra": index} for index in range(10)])
    out = tmp_path / "s.jsonl"
    assert run_command(["score", "--reward", str(save_reward()), "--data", str(data), "--out", str(out)]) == 0
    examples = [reward.tokenizer.encode_example(Prompt(prompt="a b"), f"c {index}") for index in range(10)]
    assert [row["score"] for row in rows_of(out)] == pytest.approx(reward.score(examples).tolist(), abs=1e-5)
    assert [row["extra"] for row in rows_of(out)] == list(range(10))
    assert json.loads(out.read_text().splitlines()[0])["completion"] == "c 0"
