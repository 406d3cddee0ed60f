"""A stand-in for the Hugging Face hub: one repository of models over HTTP, with several revisions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread


def commit_of(revision: str) -> str:
    """Return the commit that a branch or tag names, or the commit itself."""
    return revision if len(revision) == 40 else hashlib.sha1(revision.encode()).hexdigest()


@contextmanager
def serve_hub(repository: str, revisions: Mapping[str, Path]) -> Iterator[str]:
    """Serve model directories as revisions of a repository, and yield the address (HF_ENDPOINT)."""
    folders = dict(revisions) | {commit_of(name): folder for name, folder in revisions.items()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(with_body=True)

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def answer(self, *, with_body: bool) -> None:
            prefix = f"/{repository}/resolve/"
            revision, _, name = self.path.partition("?")[0].removeprefix(prefix).partition("/")
            if self.path == "/":
                self.reply(200, b"", {}, with_body)
            elif not self.path.startswith(prefix):
                self.reply(404, json.dumps({"error": "not found"}).encode(), {}, with_body)
            elif revision not in folders:
                self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"}, with_body)
            elif not (file := folders[revision] / name).is_file():
                headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit_of(revision)}
                self.reply(404, b"", headers, with_body)
            else:
                content = file.read_bytes()
                etag = hashlib.sha256(content).hexdigest()
                headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit_of(revision)}
                self.reply(200, content, headers, with_body)

        def reply(self, status: int, content: bytes, headers: dict[str, str], with_body: bool) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_body:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
