"""Unusual places: dangling links, pipes, missing files that look like names of the hub, closed streams, scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.commands import SRC, run_in_process

from instructgpt import io
from instructgpt.distributed.launch import check_main_guard
from instructgpt.errors import InputError
from instructgpt.models import loading
from instructgpt.models.loading import from_pretrained

PAIRS = [{"prompt": "p", "chosen": "a", "rejected": "b"}]


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return run_in_process(capsys)


@pytest.fixture
def no_hub(monkeypatch):
    """Any question to the hub is a failure."""

    def fail(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("datasets.load_dataset", fail)
    monkeypatch.setattr(loading, "_is_hub_reachable", fail)


@pytest.mark.parametrize("out", ["link", "link/below", "link.jsonl"])
def test_a_dangling_link_as_output_is_named(out, command, tmp_path):
    link = tmp_path / Path(out).parts[0]
    link.symlink_to(tmp_path / "gone")
    (tmp_path / "p.jsonl").write_text('{"prompt": "p"}\n')
    for argv in (
        ["data", "split", "--data", "p.jsonl", "--out", out],
        ["sample", "--model", "./m", "--prompts", "p.jsonl", "--out", out],
    ):
        if argv[0] == "sample" or not out.endswith("l"):
            error = command(*argv).error_line(2)
            assert f"{link.name} is a symbolic link to {tmp_path / 'gone'}, which does not exist" in error
    assert link.is_symlink()
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize(
    "name", ["corpus.jsnl", "data/corpus", "data/corpus.jsonl", "a/b/c", "~/corpus", "/nowhere/corpus"]
)
@pytest.mark.usefixtures("no_hub")
def test_a_missing_file_asks_no_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match="no such file"):
        list(io.iter_rows(name))


@pytest.mark.parametrize("name", ["runs/sft", "./sft", "a/b/c", "~/sft", "/nowhere/sft"])
@pytest.mark.usefixtures("no_hub")
def test_a_missing_model_directory_asks_no_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(InputError, match="no such directory"):
        from_pretrained(None, name)


@pytest.mark.parametrize(
    ("name", "missing"), [("gpt2", False), ("owner/name", False), ("data/name", True), ("data", False), (".", False)]
)
def test_names_of_the_hub_are_told_from_paths(name, missing, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert io.is_missing_path(name) == missing


@pytest.mark.parametrize("name", ["pipe", "pipe.jsonl", "pipe.csv"])
def test_a_pipe_is_read_like_a_file(name, tmp_path):
    pipe = tmp_path / name
    os.mkfifo(pipe)
    text = "prompt,n\na,1\nb,2\n" if name.endswith("csv") else '{"prompt": "a"}\n{"prompt": "b"}\n'
    writer = threading.Thread(target=pipe.write_text, args=(text,))
    writer.start()
    for _ in range(2):  # commands read their inputs more than once
        assert [row["prompt"] for _, row in io.iter_rows(pipe)] == ["a", "b"]
    writer.join()


def test_process_substitution_and_devices(tmp_path):
    script = (
        f"{sys.executable} -m instructgpt data import --data <(echo '{json.dumps(PAIRS[0])}') --out r.jsonl >&2 && "
        f"{sys.executable} -m instructgpt data import --data /dev/null --out r2.jsonl"
    )
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env={"PYTHONPATH": str(SRC)}, capture_output=True, text=True
    )
    assert json.loads((tmp_path / "r.jsonl").read_text())["completions"] == ["a", "b"]
    assert done.returncode == 2
    assert "/dev/null: is not a regular file" in done.stderr


def test_closed_streams_and_full_disks(tmp_path):
    (tmp_path / "p.jsonl").write_text(json.dumps(PAIRS[0]) + "\n")
    instructgpt = f"{sys.executable} -m instructgpt"
    to_rankings = f"{instructgpt} data import --data p.jsonl"

    def run(line):
        environment = {"PYTHONPATH": str(SRC)}
        return subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert (run(f"{to_rankings} --out r.jsonl >&-").returncode, run(f"{instructgpt} --help >&- 2>&-").returncode) == (
        0,
        0,
    )
    assert run(f"{to_rankings} --out r2.jsonl <&- >&- 2>&-").returncode == 0
    assert (tmp_path / "r.jsonl").read_bytes() == (tmp_path / "r2.jsonl").read_bytes() != b""
    assert run(f"{instructgpt} pp0 >&-").stderr.startswith("instructgpt: no command 'pp0'")
    full = run(f"{instructgpt} --help >/dev/full")
    assert (full.returncode, full.stderr) == (
        1,
        "instructgpt: standard output cannot be written (No space left on device)\n",
    )


SCRIPT = """
import sys, instructgpt
from instructgpt.distributed.launch import process_map
from instructgpt.errors import InputError
{guard}
    try:
        with process_map(2) as map_fn:
            print(list(map_fn(abs, [-1, -2])))
    except InputError as error:
        sys.exit(str(error))
"""


@pytest.mark.parametrize(
    ("guard", "out"), [("if True:", ""), ("if __name__ == '__main__':", "[1, 2]\n")], ids=["unguarded", "guarded"]
)
def test_a_script_without_a_main_guard_is_told_so(guard, out, tmp_path):
    script = tmp_path / "train_all.py"
    script.write_text(SCRIPT.format(guard=guard))
    done = subprocess.run(
        [sys.executable, str(script)], env={"PYTHONPATH": str(SRC)}, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == out
    assert done.returncode == (0 if out else 1)
    message = f"{script}: worker processes import this script and would run it again; put the call below "
    assert done.stderr.startswith("" if out else message)


def test_packages_and_notebooks_need_no_guard(monkeypatch):
    check_main_guard()  # pytest's own
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    check_main_guard()
