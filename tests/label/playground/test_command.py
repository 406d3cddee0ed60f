"""`label serve --endpoint`: a new site and the link to its playground from one command."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from support.browser import free_port
from support.openai_server import openai_server

from instructgpt.errors import InputError
from instructgpt.label.configs import ServeConfig
from instructgpt.label.playground.endpoint import ModelEndpoint, ModelEndpointError, parse_stream_line

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3] / "src"), "OMP_NUM_THREADS": "1"}


@contextmanager
def serve(folder, url, *options, key=""):
    command = [sys.executable, "-m", "instructgpt", "label", "serve", "--site", folder, "--port", "0"]
    environment = ENVIRONMENT | {"INSTRUCTGPT_ENDPOINT_KEY": key}
    command += ["--endpoint", url, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.terminate()


def read_until(process, start):
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(start):
            return lines
    raise AssertionError(lines)


def test_one_command_makes_the_site_and_prints_the_link(tmp_path):
    options = ("--endpoint-models", "sft", "gone")
    with (
        openai_server(key="the key") as endpoint,
        serve(tmp_path / "site", endpoint.url, *options, key="the key") as process,
        httpx.Client(headers={"Sec-Fetch-Site": "same-origin"}, follow_redirects=True) as client,
    ):
        lines = read_until(process, "warning: --endpoint-models")
        assert "gone: the endpoint has policy, policy@round-1, sft, base" in lines[-1]
        [link] = [line.split()[1] for line in lines if line.startswith("playground: ")]
        page = client.get(link)
        assert page.status_code == 200
        assert "Keep my messages" in page.text
        body = {"key": "0" * 8 + "-0000-4000-8000-" + "0" * 12, "messages": [{"role": "user", "content": "x"}]}
        address = link.partition("/playground/")[0]
        answer = client.post(f"{address}/api/v1/playground/turns", json=body)
        assert answer.text.count('"text": "sft-says-0"') == 2
        assert "the key" not in "".join(lines)


def test_a_silent_endpoint_is_named_and_the_site_serves(tmp_path):
    with serve(tmp_path / "site", f"http://127.0.0.1:{free_port()}") as process:
        line = read_until(process, "warning: --endpoint ")[-1]
        assert "cannot be reached" in line
        assert process.poll() is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"endpoint": "ftp://x"}, "https://HOST"),
        ({"endpoint": "localhost:8000"}, "https://HOST"),
        ({"retention_days": 0, "endpoint": "http://x"}, "greater than or equal to 1"),
    ],
)
def test_bad_options_are_named(tmp_path, options, words):
    with pytest.raises((InputError, ValueError), match=words):
        ServeConfig(site=tmp_path, **options)


@pytest.mark.parametrize(
    ("line", "delta"),
    [
        (": ping", None),
        ("", None),
        ("event: x", None),
        ("data: [DONE]", None),
        ('data: {"choices": [], "usage": {"total_tokens": 3}}', None),
        ('data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}', ("", None, None)),
        ('data: {"choices": [{"delta": {"content": null}, "finish_reason": "length"}]}', ("", "length", None)),
        ('data:{"system_fingerprint": "fp", "choices": [{"delta": {"content": "a"}}]}', ("a", None, "fp")),
    ],
)
def test_lines_of_a_stream(line, delta):
    found = parse_stream_line(line)
    assert (found and (found.text, found.finish, found.checkpoint)) == delta


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('data: {"error": {"message": "out of memory", "type": "x"}}', "out of memory"),
        ('data: {"error": "broken"}', "broken"),
        ("data: {", "no chunk"),
        ("data: 3", "no chunk"),
        ('data: {"choices": 3}', "no chunk"),
    ],
)
def test_errors_in_a_stream(line, words):
    with pytest.raises(ModelEndpointError, match=words):
        parse_stream_line(line)


@pytest.mark.parametrize(
    ("url", "base"),
    [("http://h:1", "http://h:1/v1"), ("http://h/v1/", "http://h/v1"), ("https://h/api", "https://h/api/v1")],
)
def test_addresses_of_endpoints(url, base):
    assert ModelEndpoint(url).base_url == base
