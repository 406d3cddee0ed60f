"""A stand-in for the Hugging Face hub: one repository of models over HTTP with several revisions, and uploads."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import yaml


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


class _Uploads(BaseHTTPRequestHandler):
    """The hub's API for creating a repository and committing files: weights by LFS, other files in the commit."""

    server: _UploadServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self.reply(401, {"error": "Invalid username or password."})
        elif self.path == "/api/repos/create":
            self.create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            front_matter = json.loads(body)["content"].split("---")[1]
            ok = isinstance(yaml.safe_load(front_matter).get("license"), str)
            self.reply(200 if ok else 400, {} if ok else {"errors": [{"message": "license is required"}]})
        elif match := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
            files = [
                {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"}
                | {"shouldIgnore": False, "oid": None}
                for file in json.loads(body)["files"]
            ]
            self.reply(200 if match[1] in self.server.repositories else 404, {"files": files})
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                entry | {"actions": {"upload": {"href": f"{self.server.url}/lfs/{entry['oid']}"}}}
                for entry in json.loads(body)["objects"]
            ]
            self.reply(200, {"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
            self.commit(match[1], [json.loads(line) for line in body.splitlines()])
        else:
            self.reply(404, {"error": f"no route {self.path}"})

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.removeprefix("/lfs/")
        matches = hashlib.sha256(content).hexdigest() == oid
        if matches:
            self.server.objects[oid] = content
        self.reply(200 if matches else 400, {})

    def create(self, request: dict[str, str]) -> None:
        name = f"{request['organization']}/{request['name']}"
        exists = name in self.server.repositories
        self.server.repositories.setdefault(name, request.get("visibility", "public"))
        self.reply(409 if exists else 200, {"url": f"{self.server.url}/{name}"})

    def commit(self, repository: str, lines: list[dict[str, Any]]) -> None:
        folder = self.server.folder / repository
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                continue
            path = folder / value["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            is_inline = line["key"] == "file"
            path.write_bytes(base64.b64decode(value["content"]) if is_inline else self.server.objects[value["oid"]])
        self.reply(200, {"commitUrl": f"{self.server.url}/{repository}/commit/{40 * 'a'}", "commitOid": 40 * "a"})

    def reply(self, status: int, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


class _UploadServer(ThreadingHTTPServer):
    def __init__(self, folder: Path, token: str) -> None:
        super().__init__(("127.0.0.1", 0), _Uploads)
        self.folder, self.token = folder, token
        self.repositories: dict[str, str] = {}
        self.objects: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def accept_uploads(folder: Path, token: str) -> Iterator[_UploadServer]:
    """Serve the part of the hub's API that uploads need; committed files are written into `folder`."""
    server = _UploadServer(folder, token)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
