"""Text of the site's own people as HTML: Markdown without HTML, cleaned; links and pictures stay words."""

from __future__ import annotations

import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup

MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["image", "link", "autolink"])
TAGS = {
    "p", "br", "hr", "em", "strong", "code", "pre", "blockquote", "ul", "ol", "li", "h1", "h2", "h3", "h4", "h5", "h6",
    "table", "thead", "tbody", "tr", "th", "td",
}  # fmt: skip


def rendered(markdown: str) -> Markup:
    """Markdown as safe HTML: nothing in it runs, loads or leads anywhere."""
    return Markup(nh3.clean(MARKDOWN.render(markdown), tags=TAGS, attributes={}))
