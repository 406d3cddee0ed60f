"""Sphinx configuration of the documentation: `make docs` builds docs/build/index.html.

Pages are plain Markdown that also reads well in the repository. An index page is the table of contents of its folder:
the pages that it links, in their order, become the navigation.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
KINDS = ("tutorials", "guides", "reference", "explanation")

project = "instructgpt"
html_title = "instructgpt"
extensions = ["myst_parser"]
exclude_patterns = ["build"]
nitpicky = True
highlight_language = "text"
myst_heading_anchors = 4
html_theme = "furo"
html_static_path = ["_static"]
html_js_files = ["accessibility.js"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False

LINK = re.compile(r"\]\(([\w/.-]+)\.md\)")
FENCE = re.compile(r"^```.*?^```$", re.M | re.S)


def add_navigation(_app: Any, name: str, source: list[str]) -> None:
    """Append a hidden table of contents to an index page."""
    folder, _, page = name.rpartition("/")
    if page != "index":
        return
    linked = [target for target in LINK.findall(FENCE.sub("", source[0])) if not target.startswith("..")]
    linked = [f"{kind}/index" for kind in KINDS] if not folder else linked
    source[0] += "\n\n```{toctree}\n:hidden:\n\n" + "\n".join(dict.fromkeys(linked)) + "\n```\n"


def link_outside(_app: Any, name: str, source: list[str]) -> None:
    """Turn links to Markdown pages outside docs into links to copies of the files, which browsers show as text."""
    folder = (DOCS / name).parent

    def replace(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(folder / f"{match[1]}.md"))
        return match[0] if target.is_relative_to(DOCS) else f"](<path:{match[1]}.md>)"

    source[0] = LINK.sub(replace, source[0])


def setup(app: Any) -> None:
    """Register what changes the pages before they are read."""
    app.connect("source-read", add_navigation)
    app.connect("source-read", link_outside)
