"""Models of the hub at a revision, from a stand-in for the hub over HTTP.

pytest tests/models/test_hub_revisions.py
"""

import os
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file
from support.hub_server import commit_of, serve_hub

# In a process of its own, because huggingface_hub reads its address once.
LOAD = """
import sys, torch
from instructgpt.errors import InputError
from instructgpt.models.loading import model_notices
from instructgpt.models.policy import load_policy
for source in sys.argv[1:]:
    try:
        model, _ = load_policy(source, torch.device("cpu"))
        print(model.get_input_embeddings().weight[0, 0].item(), *model_notices(model), sep="\\t")
    except InputError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def hub(save, tmp_path_factory):
    """A repository whose two revisions differ in one weight."""
    root = tmp_path_factory.mktemp("hub")
    for name, value in (("main", 1.0), ("v2", 2.0)):
        shutil.copytree(save("llama"), root / name)
        file = root / name / "model.safetensors"
        weights = load_file(file)
        key = next(key for key in weights if "embed" in key)
        weights[key][0, 0] = value
        save_file(weights, file, metadata={"format": "pt"})
    with serve_hub("team/tiny", {name: root / name for name in ("main", "v2")}) as address:
        yield address


@pytest.fixture
def load(hub, tmp_path):
    def run(*sources):
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        environment |= {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-c", LOAD, *map(str, sources)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return [line.split("\t") for line in done.stdout.splitlines()]

    return run


def test_a_revision_is_a_branch_a_tag_or_a_commit(load):
    latest, tagged, pinned = load("team/tiny", "team/tiny@v2", f"team/tiny@{commit_of('v2')}")
    assert [float(loaded[0]) for loaded in (latest, tagged, pinned)] == [1.0, 2.0, 2.0]
    assert any(f"team/tiny@{commit_of('main')} is always this one" in notice for notice in latest)
    assert not any("is always this one" in notice for notice in pinned)


def test_unknown_revision_is_named_and_an_at_sign_in_a_path_is_none(load, save, tmp_path):
    folder = tmp_path / "model@home"
    shutil.copytree(save("llama"), folder)
    (unknown,), (weight, *_), (missing,) = load("team/tiny@v3", folder, tmp_path / "missing@home")
    assert unknown.startswith("team/tiny@v3: there is no such directory, and no model of that name")
    assert "at the revision 'v3'" in unknown
    float(weight)
    assert "no such directory" in missing
