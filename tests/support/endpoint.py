"""A real HTTP server on this machine that misbehaves as it is told to."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Told = Callable[["Service", dict[str, Any]], Any]
"""What to answer a question with: a JSON object, or (status, headers, bytes), or None to hang up without a word."""


class Service(ThreadingHTTPServer):
    """What was asked, and how many questions were under way at a time."""

    daemon_threads = True

    def __init__(self, told: Told) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.told, self.asked, self.keys, self.paths, self.times = told, [], [], [], []
        self.under_way = self.most = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_: object) -> None:
        """A client that went away is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: Nagle would hold the second for 40 ms
    server: Service

    def do_POST(self) -> None:
        service = self.server
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with service.lock:
            service.asked.append(question)
            service.keys.append(self.headers.get("Authorization"))
            service.paths.append(self.path)
            service.times.append(time.monotonic())
            service.under_way += 1
            service.most = max(service.most, service.under_way)
        try:
            said = service.told(service, question)
        finally:
            with service.lock:
                service.under_way -= 1
        if said is None:
            self.close_connection = True
            return
        status, headers, body = (200, {}, json.dumps(said).encode()) if isinstance(said, dict | list) else said
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@contextlib.contextmanager
def serving(told: Told) -> Iterator[Service]:
    """The service, while the block runs."""
    service = Service(told)
    thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield service
    finally:
        service.shutdown()
        thread.join()
        service.server_close()
