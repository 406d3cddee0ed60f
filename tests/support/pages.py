"""Commands in the shell blocks of a Markdown page."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^ *(```+|~~~+) *(\w*)[^\n]*\n(.*?)^ *\1 *$", re.M | re.S)


def find_page(name: str) -> Path | None:
    """Return the page of this name in docs, whatever its kind; names are unique."""
    pages = list(DOCS.rglob(f"{name}.md"))
    assert len(pages) < 2, pages
    return pages[0] if pages else None


def read_page(name: str) -> str:
    """Return the text of the page of this name in docs."""
    page = find_page(name)
    assert page is not None, f"docs have no page {name}.md"
    return page.read_text(encoding="utf-8")


def commands(text: str) -> Iterator[list[str]]:
    """Yield the arguments of every `instructgpt …` in the shell blocks of a page."""
    for _, language, block in FENCE.findall(text):
        if language not in {"sh", "bash", "shell", "console"}:
            continue
        for line in re.sub(r"\\\n", " ", block).splitlines():
            yield from commands_in(line)


def commands_in(line: str) -> Iterator[list[str]]:
    splitter = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|&;<>()")
    splitter.whitespace_split, splitter.commenters = True, "#"
    arguments: list[str] | None = None
    for word in splitter:
        if set(word) <= set("|&;<>()"):
            if arguments is not None:
                yield arguments
            arguments = None
        elif arguments is not None:
            arguments.append(word)
        elif word.rsplit("/", 1)[-1] == "instructgpt":
            arguments = []
    if arguments is not None:
        yield arguments
