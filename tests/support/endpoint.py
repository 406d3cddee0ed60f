"""An HTTP server on this machine that answers, fails or hangs up as a test's function decides."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Respond = Callable[["Service", dict[str, Any]], Any]
"""Maps a payload to the answer: a JSON object, (status, headers, body), or None to hang up."""


class Service(ThreadingHTTPServer):
    """Records all payloads, keys and paths, and how many requests were handled at once."""

    daemon_threads = True

    def __init__(self, respond: Respond) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.respond, self.payloads, self.keys, self.paths = respond, [], [], []
        self.active = self.max_active = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_: object) -> None:
        """Ignore clients that disconnect."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: Nagle would hold the second for 40 ms
    server: Service

    def do_POST(self) -> None:
        service = self.server
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with service.lock:
            service.payloads.append(payload)
            service.keys.append(self.headers.get("Authorization"))
            service.paths.append(self.path)
            service.active += 1
            service.max_active = max(service.max_active, service.active)
        try:
            answer = service.respond(service, payload)
        finally:
            with service.lock:
                service.active -= 1
        if answer is None:
            self.close_connection = True
            return
        status, headers, body = (200, {}, json.dumps(answer).encode()) if isinstance(answer, dict | list) else answer
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextlib.contextmanager
def serving(respond: Respond) -> Iterator[Service]:
    """Run the service within the block."""
    service = Service(respond)
    thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield service
    finally:
        service.shutdown()
        thread.join()
        service.server_close()
