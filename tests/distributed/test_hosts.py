"""Two hosts, as network namespaces on one machine joined by a virtual cable; and the recipes for clusters.

One host is lost during a run and the other notices; both start again and end with the bytes of an undisturbed run.
Namespaces need root and iproute2; the test is skipped without them.

pytest tests/distributed/test_hosts.py
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.commands import EAGER, SRC, CommandProcess, logged, wait_for

from instructgpt.run.directory import read_jsonl_log

RECIPES = SRC.parent / "recipes" / "cluster"
ADDRESSES = ("10.231.77.1", "10.231.77.2")
SHELL = ("bash", "-c")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts():
    """Names of two connected namespaces; `ip link set cable down` disconnects them."""
    names = [f"ig{os.getpid()}{letter}" for letter in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
    except (OSError, subprocess.CalledProcessError) as error:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False) if shutil.which(
                "ip"
            ) else None
        pytest.skip(f"no network namespaces here ({getattr(error, 'stderr', '') or error}): it needs root and iproute2")
    yield names
    for name in names:
        kill_host(name)
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def kill_host(host: str) -> None:
    """Kill all processes of a host, as a power failure would."""
    there = subprocess.run(["ip", "netns", "pids", host], check=True, capture_output=True, text=True).stdout.split()
    for process in there:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(process), signal.SIGKILL)


def start(hosts: list[str], argv: list[str], folder: Path) -> list[CommandProcess]:
    """Start the torchrun recipe on each host, with a checkpoint after every step."""
    python = folder / "python"  # replaces `-m instructgpt` by the program with checkpoints after every step
    python.write_text(
        f'#!/bin/bash\nargs=("$@")\nfor i in "${{!args[@]}}"; do\n'
        '  [ "${args[$i]}" = instructgpt ] && [ "${args[$((i-1))]}" = -m ] || continue\n'
        f'  args[$((i-1))]={folder}/eager.py; unset "args[$i]"\n'
        f'done\nexec {sys.executable} "${{args[@]}}"\n'
    )
    python.chmod(0o755)
    (folder / "eager.py").write_text(EAGER)
    started = []
    for number, name in enumerate(hosts):
        settings = {
            "HOSTS": 2,
            "HOST": number,
            "FIRST": ADDRESSES[0],
            "RANKS": 1,
            "GLOO_SOCKET_IFNAME": "cable",
            "PYTHON": python,
        }
        script = "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"
        words = ["env", *(f"{key}={value}" for key, value in settings.items()), RECIPES / "torchrun.sh", *argv]
        started.append(CommandProcess(["ip", "netns", "exec", name, *words], program=("-c", script)))
    return started


@pytest.mark.slow
def test_run_resumes_exactly_after_a_lost_host(hosts, kit, tmp_path):
    out, alone = tmp_path / "out", tmp_path / "alone"
    options = ("--tokens", 64 * 60, "--patience", 10)
    first, second = start(hosts, kit.pretrain(out, *options), tmp_path)
    first.wait_until(logged(out, 3))
    ip("-n", hosts[1], "link", "set", "cable", "down")
    kill_host(hosts[1])
    lost = first.end()
    assert lost.code == 1
    (line,) = [line for line in lost.err.splitlines() if line.startswith("instructgpt: ")]
    assert "rank 1 died or hangs: no answer for 10 s, or a lost connection" in line
    assert second.end().code == -signal.SIGKILL
    wait_for(lambda: first.group_has_ended and second.group_has_ended, patience=10)
    kept = sorted((out / "checkpoints").glob("step-*"))
    assert kept
    assert not (out / "model.safetensors").exists()

    ip("-n", hosts[1], "link", "set", "cable", "up")
    again = [one.end() for one in start(hosts, kit.pretrain(out, *options), tmp_path)]
    assert [one.code for one in again] == [0, 0], again
    assert "resuming after step" in again[0].out
    undisturbed = [one.end() for one in start(hosts, kit.pretrain(alone, *options), tmp_path)]
    assert [one.code for one in undisturbed] == [0, 0]
    assert (out / "model.safetensors").read_bytes() == (alone / "model.safetensors").read_bytes()
    rows = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_jsonl_log(folder / "metrics.jsonl")]
        for folder in (out, alone)
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 60


def test_slurm_recipe_numbers_the_hosts(tmp_path):
    """Run the batch script with fakes of Slurm's commands; srun runs the task for each of two hosts."""
    for name, text in {
        "scontrol": '[ "$1" = show ] && printf "node7\\nnode8\\n" || echo "$@" >> requeued',
        "srun": 'shift; for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done; exit ${CODE:-0}',
        "python": 'echo "$@"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_ID": "77",
        "RECIPES": str(RECIPES),
    }
    environment = {**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}", "RANKS": "8", "PYTHON": "python"}
    command = ["bash", RECIPES / "slurm.sbatch", "sft", "--out", "a b"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    launch = (
        "-m torch.distributed.run --nnodes 2 --node-rank {} --nproc-per-node 8 --master-addr node7 --master-port 20077"
    )
    assert done.stdout.splitlines() == [f"{launch.format(host)} -m instructgpt sft --out a b" for host in (0, 1)]
    assert not (tmp_path / "requeued").exists()
    for restarts, queued in (("0", "requeue 77\n"), ("10", "requeue 77\n")):
        failed = subprocess.run(
            command, env={**environment, "CODE": "3", "SLURM_RESTART_COUNT": restarts}, cwd=tmp_path, check=False
        )
        assert failed.returncode == 3
        assert (tmp_path / "requeued").read_text() == queued


def test_kubernetes_recipe_is_consistent():
    service, job = yaml.safe_load_all((RECIPES / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    (stage,) = pod["containers"]
    variables = {entry["name"]: entry.get("value") for entry in stage["env"]}
    assert job["spec"]["completionMode"] == "Indexed"
    assert int(variables["HOSTS"]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert variables["FIRST"] == f"{job['metadata']['name']}-0.{pod['subdomain']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert int(variables["RANKS"]) == stage["resources"]["limits"]["nvidia.com/gpu"]
    assert (SRC.parent / stage["command"][0]).exists()
    assert {mount["name"] for mount in stage["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
