"""A site in a process of its own on a free port, with an owner's API key; it can be killed and restarted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from instructgpt.errors import RunError
from instructgpt.label.auth import accounts
from instructgpt.label.auth.tokens import issue_api_key
from instructgpt.label.client import OwnerClient
from instructgpt.label.site_folder import create_site_folder, is_site_folder, open_site
from instructgpt.label.tasks import instructions

_API_SCOPES = ("read", "write", "export", "admin")
_SERVER_SCRIPT = """
import os, signal, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os.kill(os.getpid(), signal.SIGTERM)), daemon=True).start()
from instructgpt.cli import main
main(sys.argv[1:])
"""
"""The server watches its standard input, which closes when the parent exits for any reason, even SIGKILL."""


class SiteServer:
    """A running site; a missing folder is created with `database` as its database URL. Raises RunError.

    `options`: further arguments of `label serve`.
    """

    def __init__(
        self, folder: Path, database: str | None = None, patience: float = 60.0, options: Sequence[str] = ()
    ) -> None:
        self.options = tuple(options)
        if not is_site_folder(folder):
            create_site_folder(folder, database)
        self.folder, self.patience, self.port = folder, patience, 0
        self.key = self._create_api_key()
        self.process: subprocess.Popen[str] | None = None
        self.start()

    def _create_api_key(self) -> str:
        site = open_site(self.folder)
        try:
            with site.database.write() as db:
                instructions.publish_default_texts(db)
                name = f"server {os.getpid()} {time.time_ns()}"
                owner = accounts.create_person(db, name, "owner")
                return issue_api_key(db, name, _API_SCOPES, owner.id)[1]
        finally:
            site.database.close()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server; a restart reuses the port of the first start."""
        arguments = ["label", "serve", "--site", str(self.folder), "--port", str(self.port), *self.options]
        command = [sys.executable, "-c", _SERVER_SCRIPT, *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        with (self.folder / "server.log").open("a", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("labelers' site: "):
                self.port = int(line.split()[2].rstrip("/").rpartition(":")[2])
                break
        else:
            raise RunError(f"the site in {self.folder} did not start; see {self.folder / 'server.log'}")
        with self.connect() as owner_client:
            deadline = time.monotonic() + self.patience
            while not owner_client.is_ready():
                if time.monotonic() >= deadline or self.process.poll() is not None:
                    raise RunError(f"the site in {self.folder} does not respond; see {self.folder / 'server.log'}")
                time.sleep(0.05)

    def connect(self) -> OwnerClient:
        return OwnerClient(self.base_url, self.key, patience=self.patience)

    def kill(self) -> None:
        """Kill the server with SIGKILL, as a power failure would."""
        self._terminate(signal.SIGKILL)

    def stop(self) -> None:
        self._terminate(signal.SIGTERM)

    def _terminate(self, signal_number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(signal_number)
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()
            self.process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
