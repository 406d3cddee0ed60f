"""`label init` and `label serve`: a site is created, answers, stops gracefully; errors are one line.

pytest tests/label/cli/test_serve.py
"""

from __future__ import annotations

import re
import signal
import socket
import stat
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select
from support.commands import SRC, run_in_process

from instructgpt.label.db.models import AuditLogEntry, Instructions, Person
from instructgpt.label.site_folder import iter_storage_warnings, open_site

GOOD = "correct horse battery"


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return run_in_process(capsys)


@pytest.mark.parametrize(("ending", "is_new"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
def test_serve_creates_a_site_and_stops_gracefully(command, tmp_path, ending, is_new):
    """The link of `label serve` sets up a new site; for one that `label init` made, the link of init still does."""
    init = None if is_new else command("label", "init", "--site", "site").out
    arguments = [sys.executable, "-m", "instructgpt", "label", "serve", "--site", str(tmp_path / "site"), "--port", "0"]
    with (
        subprocess.Popen(
            arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": str(SRC), "PATH": "/usr/bin:/bin"},
        ) as process,
        ExitStack() as stack,
    ):
        stack.callback(process.kill)  # else a failed assertion waits for the server for ever
        assert process.stdout is not None
        address = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
        link = process.stdout.readline().rsplit(" ", 1)[-1].strip()
        assert link.startswith(f"{address}/invite/")
        if init is not None:
            link = f"{address}/invite/" + re.search(r"/invite/(\S+)", init)[1]
        with httpx.Client(headers={"Origin": address}) as client:
            assert "Set up the site" in client.get(link).text
            answer = client.post(link, data={"name": "olga", "password": GOOD, "again": GOOD})
            assert answer.status_code == 303
            assert answer.headers["content-security-policy"].startswith("default-src 'none'")
            assert "server" not in answer.headers
            assert client.get(f"{address}/api/v1/me").json()["role"] == "owner"
        process.send_signal(ending)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert out.endswith("stopped; everything is saved\n")
    site = open_site(tmp_path / "site")
    with site.database.read() as db:
        assert db.scalars(select(Person.name)).all() == ["olga"]
    site.database.close()


def test_init_creates_tables_texts_and_a_setup_link(command):
    outcome = command("label", "init", "--site", "site", "--public-url", "https://labels.example.org/")
    assert (outcome.code, outcome.err) == (0, "")
    token = re.search(r"https://labels\.example\.org/invite/(\S+)", outcome.out)[1]
    assert stat.S_IMODE(Path("site/site.yaml").stat().st_mode) == 0o600
    site = open_site(Path("site"))
    with site.database.read() as db:
        assert db.scalars(select(Person)).all() == []
        assert sorted(db.scalars(select(Instructions.purpose))) == ["evaluation", "training"]
        assert {row.action for row in db.scalars(select(AuditLogEntry))} == {
            "instructions.publish",
            "consent.publish",
            "playground.publish_consent",
            "invite.create",
        }
    site.database.close()
    assert token not in b"".join(file.read_bytes() for file in Path("site").iterdir()).decode("latin-1")
    again = command("label", "init", "--site", "site")
    assert again.code == 2
    assert "is already a site" in again.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("init", "--site", "file"), "--site file"),
        (
            ("init", "--site", "new", "--database", "mysql://host/x"),
            "expected sqlite:///FILE or postgresql://USER@HOST/NAME",
        ),
        (("init", "--site", "new", "--database", "postgresql://nobody@127.0.0.1:1/none"), "cannot open the database"),
        (("serve", "--site", "new", "--port", "70000"), "--port"),
        (("serve", "--site", "new", "--public-url", "labels.example.org"), "expected https://HOST"),
        (("serve", "--site", "new", "--host", "192.0.2.1", "--public-url", "https://a.example"), "cannot listen there"),
    ],
)
def test_invalid_options_are_one_line_errors(command, tmp_path, arguments, message):
    (tmp_path / "file").touch()
    outcome = command("label", *arguments)
    assert outcome.code == 2, outcome.err
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_failed_init_can_be_repeated(command):
    assert command("label", "init", "--site", "new", "--database", "postgresql://nobody@127.0.0.1:1/none").code == 2
    assert command("label", "init", "--site", "new").code == 0


def test_port_in_use_is_an_error(command):
    with socket.create_server(("127.0.0.1", 0)) as other:
        outcome = command("label", "serve", "--site", "new", "--port", str(other.getsockname()[1]))
    assert outcome.code == 2
    assert "cannot listen there" in outcome.err


def test_database_of_a_site_cannot_change(command):
    command("label", "init", "--site", "site")
    outcome = command("label", "serve", "--site", "site", "--database", "sqlite:///other.db")
    assert outcome.code == 2
    assert "this site uses" in outcome.err


def test_temporary_disk_is_warned_about(tmp_path):
    (line,) = iter_storage_warnings(tmp_path)
    assert "temporary disk" in line
    assert not list(iter_storage_warnings(Path("/usr/lib"))) or "overlay" in Path("/proc/mounts").read_text()
