"""A PostgreSQL of its own for tests that need one: a temporary cluster, or the server that `INSTRUCTGPT_TEST_POSTGRES` names."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest


def binaries() -> Path | None:
    """The folder of the newest installed server of version 15 or later."""
    found = [
        folder for folder in Path("/usr/lib/postgresql").glob("*/bin") if (folder / "initdb").exists() and int(folder.parent.name) >= 15
    ]
    return max(found, key=lambda folder: int(folder.parent.name), default=None)


@pytest.fixture(scope="session")
def postgres_server():
    """`postgresql://user@host:port`, without a database's name. Skips where there is no server; fails there when CI asks for one."""
    if given := os.environ.get("INSTRUCTGPT_TEST_POSTGRES"):
        yield given.rpartition("/")[0] if given.count("/") > 2 else given
        return
    folder = binaries()
    if folder is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("PostgreSQL 15 or later is not installed")
    place = Path(tempfile.mkdtemp(prefix="pg-"))
    someone = pwd.getpwnam("postgres").pw_uid if os.geteuid() == 0 else None
    if someone is not None:
        os.chown(place, someone, -1)
    as_someone = {"user": someone, "cwd": place, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "check": True}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = place / "data"
    try:
        subprocess.run([folder / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"], **as_someone)
        options = f"-F -p {port} -k {place} -c listen_addresses=127.0.0.1 -c max_connections=200"
        subprocess.run([folder / "pg_ctl", "-D", data, "-w", "-o", options, "start"], **as_someone)
        try:
            yield f"postgresql://postgres@127.0.0.1:{port}"
        finally:
            subprocess.run([folder / "pg_ctl", "-D", data, "-m", "immediate", "stop"], **as_someone)
    finally:
        shutil.rmtree(place, ignore_errors=True)
