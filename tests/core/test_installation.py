"""The wheel in an environment of its own that has only the base dependencies: no torch, no transformers.

pytest tests/core/test_installation.py
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.browser import free_port, skip_without

from instructgpt.commands import COMMANDS

ROOT = Path(__file__).parents[2]
LEFT_OUT = ("torch", "transformers", "tokenizers", "safetensors", "peft", "accelerate", "sacrebleu", "rouge_score")

REQUIRED_OPTIONS = {
    "pretrain": "--corpus x --out x",
    "sft": "--base x --data x --out x",
    "reward": "--base x --data x --out x",
    "ppo": "--policy x --reward x --prompts x --out x",
    "export": "x --out x",
    "sample": "--model x --prompts x --out x",
    "score": "--reward x --data x --out x",
    "best": "--data x -n 2 --out x",
    "expert-iteration": "--policy x --reward x --prompts x --out x",
    "dpo": "--policy x --data x --out x",
    "sweep": "figure-33 --vary ppo.lr=1,2 --out x",
    "evaluate": "reward_model --model x --data x --out x",
    "judge toxicity": "--data x --out x",
    "judge refusal": "--data x --out x",
    "judge truth": "--base x --data x --out x",
    "judge info": "--base x --data x --out x",
    "plan": "x",
    "doctor": "x",
    "watch": "x",
    "serve": "--model x",
    "serve guard": "curve --guard x --data x",
}
"""Command lines that parse; the files need not exist, because what is missing comes first."""

RUN_ALL = """
import json, sys
from instructgpt.cli import run_command
for line in json.loads(sys.argv[1]):
    print("exit", run_command(line.split()))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    try:
        import hatchling  # noqa: F401
    except ImportError:
        skip_without("hatchling, which builds the wheel, is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", str(ROOT), *options], check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def bin_folder(wheel) -> Path:
    """The commands of a new environment with the wheel and what it requires without an extra, at the pinned versions.

    pip installs the wheel; what it requires is linked from this environment, so that no network is needed.
    """
    environment = wheel.parent / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python")]
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True)
    (site_packages,) = environment.glob("lib/python*/site-packages")
    installed = importlib.metadata.Distribution.at(next(site_packages.glob("instructgpt-*.dist-info")))
    for distribution in required_distributions(installed):
        link_distribution(distribution, site_packages)
    subprocess.run([*pip, "check"], check=True, capture_output=True)
    return environment / "bin"


def required_distributions(root: importlib.metadata.Distribution) -> list[importlib.metadata.Distribution]:
    """What a resolver installs for a distribution without extras, from this environment."""
    distributions, seen, waiting = {}, set(), [(root, "")]
    while waiting:
        distribution, extra = waiting.pop()
        for line in distribution.requires or ():
            requirement = Requirement(line)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
                continue
            name = canonicalize_name(requirement.name)
            distributions[name] = importlib.metadata.distribution(name)
            fresh = {(name, more) for more in ("", *requirement.extras)} - seen
            seen |= fresh
            waiting += [(distributions[name], more) for _, more in fresh]
    return list(distributions.values())


def link_distribution(distribution: importlib.metadata.Distribution, site_packages: Path) -> None:
    for file in distribution.files or ():
        source, goal = Path(distribution.locate_file(file)), site_packages / file
        if ".." not in file.parts and source.is_file():  # its commands stay out
            goal.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, goal)
            except OSError:  # another file system
                shutil.copy2(source, goal)


def clean_environment() -> dict[str, str]:
    """Without the source tree on PYTHONPATH."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(program: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *arguments], cwd=cwd, env=clean_environment(), capture_output=True, text=True)


def test_base_installation_leaves_out_what_trains(bin_folder, tmp_path):
    program = f"import importlib.util as u; print([n for n in {LEFT_OUT!r} if u.find_spec(n)])"
    assert run(bin_folder / "python", "-c", program, cwd=tmp_path).stdout == "[]\n"


def test_commands_of_the_base_installation(bin_folder, tmp_path):
    instructgpt = bin_folder / "instructgpt"
    assert "usage: instructgpt COMMAND" in run(instructgpt, "--help", cwd=tmp_path).stdout
    lines = [
        {"prompt": f"p{i}", "completions": ["a", "bb", "c"], "ranks": [1, 2, 2], "labeler": f"l{i % 2}"}
        for i in range(8)
    ]
    (tmp_path / "rankings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    stats = run(instructgpt, "data", "stats", "--data", "rankings.jsonl", cwd=tmp_path)
    assert (stats.returncode, stats.stderr) == (0, "")
    assert "rankings" in stats.stdout
    init = run(instructgpt, "label", "init", "--site", "site", cwd=tmp_path)
    assert (init.returncode, init.stderr) == (0, "")
    assert (tmp_path / "site" / "site.db").exists()
    row = {"evaluation": "preference", "metric": "win_rate_vs_sft", "model": "ppo", "condition": "training"}
    (tmp_path / "results.json").write_text(json.dumps([row | {"value": 0.6, "low": 0.5, "high": 0.7, "n": 90}]))
    assert run(instructgpt, "report", "results.json", cwd=tmp_path).returncode == 0
    assert "60" in (tmp_path / "results.html").read_text()


def test_commands_that_train_name_the_extra(bin_folder, tmp_path):
    """Every one, before it looks at a file or makes one."""
    commands = {command.name for command in COMMANDS if command.needs_torch} - {"run"}
    assert commands == set(REQUIRED_OPTIONS)
    lines = {name: f"{name} {options}" for name, options in REQUIRED_OPTIONS.items()}
    lines |= {
        "run": "run --preset smoke --out x",
        "data stats": "data stats --data x.jsonl --tokenizer x",  # an option needs what the command does not
        "chat": "chat --model x",
    }
    (tmp_path / "x.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    done = run(bin_folder / "python", "-c", RUN_ALL, json.dumps(list(lines.values())), cwd=tmp_path)
    assert re.findall(r"^exit (.*)$", done.stdout, re.M) == ["2"] * len(lines), done.stdout + done.stderr
    expected = [
        f"instructgpt: {name} needs PyTorch and transformers, which are not installed; "
        "run: pip install 'instructgpt[train]'"
        for name in lines
    ]
    assert done.stderr.splitlines() == expected
    assert [file.name for file in tmp_path.iterdir()] == ["x.jsonl"]


def site_files(folder: Path) -> set[str]:
    """Relative paths of the site's files below a source or package folder."""
    label = folder / "instructgpt" / "label"
    return {
        str(file.relative_to(label)) for file in label.rglob("*") if file.is_file() and "__pycache__" not in file.parts
    }


def test_wheel_contains_every_file_of_the_site(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    there = site_files(tmp_path)
    assert there == site_files(ROOT / "src")
    for name in (
        str(Path("web", "templates", "labeler", "rank.html")),
        "web/static/board.js",
        "db/migrations/versions/0001_initial.py",
        "locales/ko.yaml",
        "texts/consent.en.md",
    ):
        assert name in there


def test_site_runs_from_the_wheel(bin_folder, tmp_path):
    port = free_port()
    program = [bin_folder / "instructgpt", "label", "serve", "--site", "site", "--port", str(port)]
    with subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=clean_environment()
    ) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline() + process.stdout.readline()
            found = re.search(r"http://\S+/invite/(\S+)", said)
            assert found is not None, said
            address = f"http://127.0.0.1:{port}"
            with httpx.Client(headers={"Origin": address}, base_url=address, timeout=60) as client:
                made = {"name": "olga", "password": "correct horse battery", "again": "correct horse battery"}
                assert client.post(f"/invite/{found[1]}", data=made).status_code == 303
                seen, waiting = set(), ["/overview"]
                while waiting:
                    page = client.get(path := waiting.pop(), follow_redirects=True)
                    assert page.status_code == 200, path
                    seen.add(path)
                    links = (
                        re.findall(r'(?:href|src)="(/[^"?#]*)', page.text)
                        if "html" in page.headers["content-type"]
                        else []
                    )
                    waiting += sorted({link for link in links if not link.endswith(".csv")} - seen - set(waiting))
                for file in (ROOT / "src" / "instructgpt" / "label" / "web" / "static").iterdir():
                    assert client.get(f"/static/{file.name}").status_code == 200, file.name
        finally:
            process.terminate()
            _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert {
        "/overview",
        "/batches/new",
        "/people",
        "/quality",
        "/results",
        "/data",
        "/journal",
        "/account",
        "/static/site.css",
    } <= seen
