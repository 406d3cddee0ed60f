"""The installed site: built into a wheel, without torch, created and served from there.

pytest tests/label/cli/test_wheel.py
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest
from support.browser import free_port, skip_without

ROOT = Path(__file__).parents[3]
PROGRAM_WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers", "datasets", "matplotlib"):
    sys.modules[name] = None  # importing it fails
sys.path.insert(0, {here!r})
import instructgpt
assert instructgpt.__file__.startswith({here!r}), instructgpt.__file__
from instructgpt.cli import main
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The wheel's contents, laid out as an installation has them."""
    try:
        import hatchling  # noqa: F401
    except ImportError:
        skip_without("hatchling, which builds the wheel, is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(ROOT),
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-q",
        "-w",
        str(folder),
    ]
    subprocess.run(command, check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site-packages")
    return folder / "site-packages"


def site_files(folder: Path) -> set[str]:
    """Relative paths of the site's files below a source or package folder."""
    label = folder / "instructgpt" / "label"
    return {
        str(file.relative_to(label)) for file in label.rglob("*") if file.is_file() and "__pycache__" not in file.parts
    }


def test_wheel_contains_every_file_of_the_site(installed):
    there = site_files(installed)
    assert there == site_files(ROOT / "src")
    for name in (
        str(Path("web", "templates", "labeler", "rank.html")),
        "web/static/board.js",
        "db/migrations/versions/0001_initial.py",
        "locales/ko.yaml",
        "texts/consent.en.md",
    ):
        assert name in there


def test_site_runs_from_the_wheel_without_torch(installed, tmp_path):
    port = free_port()
    program = [
        sys.executable,
        "-c",
        PROGRAM_WITHOUT_TORCH.format(here=str(installed)),
        "label",
        "serve",
        "--site",
        "site",
        "--port",
        str(port),
    ]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline() + process.stdout.readline()
            found = re.search(r"http://\S+/invite/(\S+)", said)
            assert found is not None, said
            address = f"http://127.0.0.1:{port}"
            with httpx.Client(headers={"Origin": address}, base_url=address, timeout=60) as client:
                made = {"name": "olga", "password": "correct horse battery", "again": "correct horse battery"}
                assert client.post(f"/invite/{found[1]}", data=made).status_code == 303
                seen, waiting = set(), ["/overview"]
                while waiting:
                    page = client.get(path := waiting.pop(), follow_redirects=True)
                    assert page.status_code == 200, path
                    seen.add(path)
                    links = (
                        re.findall(r'(?:href|src)="(/[^"?#]*)', page.text)
                        if "html" in page.headers["content-type"]
                        else []
                    )
                    waiting += sorted({link for link in links if not link.endswith(".csv")} - seen - set(waiting))
                for file in (ROOT / "src" / "instructgpt" / "label" / "web" / "static").iterdir():
                    assert client.get(f"/static/{file.name}").status_code == 200, file.name
        finally:
            process.terminate()
            _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert {
        "/overview",
        "/batches/new",
        "/people",
        "/quality",
        "/results",
        "/data",
        "/journal",
        "/account",
        "/static/site.css",
    } <= seen
