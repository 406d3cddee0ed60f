"""Models by hub name, from a local server with the hub's API: downloads, the cache, refusals.

pytest tests/models/test_hub.py
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch

from instructgpt.models.policy import load_policy

NAME, COMMIT = "somebody/tiny", "a" * 40
LOADS = """
import sys, torch
from instructgpt.errors import InputError
from instructgpt.models.policy import load_policy
try:
    model, render = load_policy(sys.argv[1], torch.device("cpu"))
except InputError as error:
    sys.exit(str(error))
print(sum(float(weight.detach().double().sum()) for weight in model.parameters()), render.eos)
"""


class Hub(ThreadingHTTPServer):
    """Serves the files of one model under its name, as long as it is `up`; else it hangs up on whoever calls."""

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = {file.name: file.read_bytes() for file in folder.iterdir()}
        self.up, self.asked = True, []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    """The few answers that loading a model needs."""

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = urlsplit(self.path).path
        self.server.asked.append(f"{self.command} {path}")
        if not self.server.up:
            self.close_connection = True
            return
        files, resolve = self.server.files, f"/{NAME}/resolve/"
        file = path.rsplit("/", 1)[-1]
        if path == "/":
            self.say(200, b"hub", {})
        elif path.startswith(f"/api/models/{NAME}") and "/tree/" not in path:
            siblings = [{"rfilename": name} for name in files]
            self.say(
                200,
                json.dumps({"id": NAME, "sha": COMMIT, "siblings": siblings}).encode(),
                {"Content-Type": "application/json"},
            )
        elif path.startswith(resolve) and file in files:
            etag = hashlib.sha256(files[file]).hexdigest()
            self.say(200, files[file], {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        else:
            missing = "EntryNotFound" if path.startswith((resolve, f"/api/models/{NAME}")) else "RepoNotFound"
            self.say(404, b"{}", {"X-Error-Code": missing, "X-Repo-Commit": COMMIT})

    def say(self, status, content, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def hub(save):
    with Hub(save("llama")) as server:
        yield server
        server.shutdown()


@pytest.fixture
def load(hub, tmp_path):
    """Load a model by its name in a process of its own, whose downloads go to one folder.

    -> exit code and what it says.
    """

    def loaded(name, **more):
        away = {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"}
        environment = {
            key: value for key, value in os.environ.items() if key not in away and not key.lower().endswith("_proxy")
        }
        source = str(Path(__file__).parents[2] / "src")
        environment |= {
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(tmp_path / "hf"),
            "PYTHONPATH": source,
            "OMP_NUM_THREADS": "1",
        } | more
        run = subprocess.run(
            [sys.executable, "-c", LOADS, name], env=environment, capture_output=True, text=True, timeout=300
        )
        return run.returncode, (run.stdout or run.stderr).strip()

    return loaded


def asked_once(hub, name):
    """One question whether the hub is there, none for the model; what its client asks for itself does not count."""
    return hub.asked.count("HEAD /") == 1 and not any(name in asked for asked in hub.asked)


def test_hub_models_are_downloaded_and_cached(hub, load, save):
    model, render = load_policy(save("llama"), torch.device("cpu"))
    expected = sum(float(weight.detach().double().sum()) for weight in model.parameters())
    code, said = load(NAME)
    assert code == 0, said
    assert float(said.split()[0]) == pytest.approx(expected, abs=1e-9)
    assert said.split()[1] == str(render.eos)
    assert f"GET /{NAME}/resolve/main/model.safetensors" in " ".join(hub.asked).replace(COMMIT, "main")
    hub.up, hub.asked = False, []
    assert load(NAME) == (0, said)
    assert asked_once(hub, NAME)


def test_an_unreachable_hub_is_asked_once(hub, load):
    hub.up = False
    code, said = load("somebody/nothing")
    assert code == 1
    assert said.startswith(
        "somebody/nothing: there is no such directory, and no model of that name can be loaded from the hub, which does"
    )
    assert asked_once(hub, "somebody/nothing")


def test_a_name_unknown_to_the_hub_is_refused(hub, load):
    code, said = load("somebody/nothing")
    assert code == 1
    assert said.startswith(
        "somebody/nothing: there is no such directory, and no model of that name can be loaded from the hub ("
    )
    assert any("somebody/nothing" in asked for asked in hub.asked)


def test_offline_mode_sends_no_requests(hub, load):
    code, said = load(NAME, HF_HUB_OFFLINE="1")
    assert code == 1
    assert NAME in said
    assert hub.asked == []
