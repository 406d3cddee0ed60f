"""The documentation as a site: builds without a warning, links lead somewhere, offline search, axe.

pytest tests/docs/test_site.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from axe_playwright_python.sync_playwright import Axe
from filelock import FileLock
from support.browser import browser  # noqa: F401
from support.pages import DOCS, ROOT

KINDS = ("tutorials", "guides", "reference", "explanation")
pytest.importorskip("sphinx", reason="the site needs the extra docs")


class Page(HTMLParser):
    """Links, names of elements, and what a page loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.names: set[str] = set()
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.names |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag in {"img", "script"} and "src" in values:
            self.loaded.append(values["src"])
        elif tag == "link" and values.get("rel") in {"stylesheet", "icon"}:
            self.loaded.append(values["href"])


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> Path:
    """The built site; processes that run tests of this file at once build it once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "documentation"
    with FileLock(f"{folder}.lock"):
        if not (folder / "complete").exists():
            done = subprocess.run(
                [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(DOCS), str(folder)],
                capture_output=True,
                text=True,
            )
            assert (done.returncode, done.stderr) == (0, "")
            (folder / "complete").touch()
    return folder


@pytest.fixture(scope="module")
def pages(html) -> dict[Path, Page]:
    return {path: Page(path) for path in html.rglob("*.html")}


def targets(path: Path, page: Page) -> Iterator[tuple[Path, str]]:
    """Files and anchors that a page links, apart from other sites."""
    for link in (*page.links, *page.loaded):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        yield (Path(os.path.normpath(path.parent / unquote(name.partition("?")[0]))) if name else path), unquote(anchor)


def test_every_page_is_built(html):
    expected = {page.relative_to(DOCS).with_suffix(".html") for page in DOCS.rglob("*.md")}
    assert not expected - {page.relative_to(html) for page in html.rglob("*.html")}


def test_links_and_anchors_of_the_site_lead_somewhere(pages):
    dead = [
        f"{path.name}: {target.name}#{anchor}"
        for path, page in pages.items()
        for target, anchor in targets(path, page)
        if not target.exists() or (anchor and target in pages and anchor not in pages[target].names)
    ]
    assert not dead


def test_nothing_comes_from_another_host(pages):
    assert not [name for page in pages.values() for name in page.loaded if re.match(r"(https?:)?//", name)]


def clicks(start: Path, links: dict[Path, set[Path]], most: int) -> set[Path]:
    """Pages that can be reached from one of them in this many clicks."""
    reached = {start}
    for _ in range(most):
        reached |= {goal for page in reached for goal in links.get(page, ())}
    return reached


def test_every_page_is_two_clicks_from_home(html, pages):
    links = {path: {target for target, _ in targets(path, page)} for path, page in pages.items()}
    written = {html / page.relative_to(DOCS).with_suffix(".html") for page in DOCS.rglob("*.md")}
    assert not written - clicks(html / "index.html", links, 2)


def test_every_page_is_two_clicks_from_the_readme_in_the_repository():
    sources = {path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *DOCS.rglob("*.md"))}
    links = {
        path: {(path.parent / name).resolve() for name in re.findall(r"\]\(([^)#\s]+)", text)}
        for path, text in sources.items()
    }
    assert not set(sources) - clicks(ROOT / "README.md", links, 2)


def test_kinds_of_page_are_apart():
    loose = {page.name for page in DOCS.glob("*.md")}
    assert loose == {"index.md"}
    assert {page.parent.name for page in DOCS.glob("*/*.md")} == set(KINDS)
    for kind in KINDS:
        text = (DOCS / kind / "index.md").read_text(encoding="utf-8")
        listed = set(re.findall(r"\]\(([\w.-]+\.md)\)", text))
        assert listed == {page.name for page in (DOCS / kind).glob("*.md")} - {"index.md"}, kind


def test_search_works_without_a_server(html, browser):  # noqa: F811
    page = browser.new_page()
    page.goto((html / "search.html").as_uri() + "?q=explained_variance")
    page.wait_for_selector("#search-results ul.search li a")
    assert "PPO and PPO-ptx" in page.inner_text("#search-results")
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_have_no_faults_that_axe_finds(html, browser, scheme):  # noqa: F811
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    names = [
        "index",
        *(f"{kind}/index" for kind in KINDS),
        "reference/ppo",
        "explanation/results",
        "tutorials/chat-model",
    ]
    if os.environ.get("INSTRUCTGPT_TEST_LONG"):
        names = [str(path.relative_to(DOCS).with_suffix("")) for path in DOCS.rglob("*.md")]
    faults = {}
    for name in names:
        page.goto((html / f"{name}.html").as_uri())
        faults |= {(name, fault["id"]): fault["nodes"][0]["html"] for fault in Axe().run(page).response["violations"]}
    context.close()
    assert not faults
