"""Rendering of untrusted Markdown on the server: tables, task lists, highlighted code, formulas as MathML.

Raw HTML stays text; links and images become text, so that the browser fetches nothing. `nh3` cleans the result again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.token import STANDARD_TYPES

from instructgpt.label.mathematics import MATH_ATTRIBUTES, MATH_TAGS, math_plugin, render_formula
from instructgpt.label.safe_text import escape_text, show_invisible

MAX_MARKDOWN_LENGTH = 20_000  # characters; longer Markdown is shown as plain text
_MAX_CODE_LENGTH = 10_000  # characters; longer code is not highlighted
_MAX_FORMULAS = 500  # inline formulas of a text; later ones are shown as source
_CACHED_TEXTS = 512  # at most 20 MB of Markdown

_BLOCK_TAGS = {"p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "pre"}
_TABLE_TAGS = {"table", "thead", "tbody", "tr", "th", "td"}
ALLOWED_TAGS = _BLOCK_TAGS | _TABLE_TAGS | {"code", "em", "strong", "s"}
"""Without highlighting and formulas, and without attributes."""
HIGHLIGHT_CLASSES = {name for name in STANDARD_TYPES.values() if name}
LEXERS = {
    *("bash", "c", "console", "cpp", "csharp", "css", "diff", "dockerfile", "go", "haskell", "html", "ini", "java"),
    *("javascript", "json", "julia", "kotlin", "lua", "makefile", "matlab", "perl", "php", "powershell", "python"),
    *("r", "ruby", "rust", "scala", "sql", "swift", "toml", "typescript", "xml", "yaml"),
}
_LEXER_ALIASES = {"sh": "bash", "shell": "bash", "zsh": "bash", "c++": "cpp", "cs": "csharp", "c#": "csharp"} | {
    "js": "javascript",
    "jsx": "javascript",
    "ts": "typescript",
    "tsx": "typescript",
    "py": "python",
    "python3": "python",
    "rb": "ruby",
    "rs": "rust",
    "yml": "yaml",
    "kt": "kotlin",
    "hs": "haskell",
    "svg": "xml",
}
"""Common languages only: of some hundred lexers a few are slow on hostile code."""


def render_markdown(text: str) -> Markup:
    """Render Markdown as HTML of a few harmless tags; raw HTML stays text."""
    if len(text) > MAX_MARKDOWN_LENGTH:
        return Markup("<pre>") + escape_text(text) + Markup("</pre>")
    return _render(text)


@lru_cache(maxsize=_CACHED_TEXTS)
def _render(text: str) -> Markup:
    tokens = _MARKDOWN.parse(show_invisible(text))
    _mark_task_lists(tokens)
    html = _MARKDOWN.renderer.render([_flatten_links(token) for token in tokens], _MARKDOWN.options, {})
    return Markup(
        nh3.clean(
            html,
            tags=ALLOWED_TAGS | MATH_TAGS | {"span"},
            attributes={},
            tag_attribute_values=dict.fromkeys(MATH_TAGS, MATH_ATTRIBUTES),
            allowed_classes={"span": HIGHLIGHT_CLASSES},
            link_rel=None,
        )
    )


def highlight_code(code: str, language: str) -> Markup:
    """Highlight code by spans with Pygments' short classes; plain text for an unknown language."""
    name = language.strip().lower()
    name = _LEXER_ALIASES.get(name, name)
    if name not in LEXERS or len(code) > _MAX_CODE_LENGTH:
        return escape(code)
    lexer = get_lexer_by_name(name, stripnl=False, ensurenl=False)
    return Markup(highlight(code, lexer, HtmlFormatter(nowrap=True)))


def _render_fence(_: Any, tokens: Sequence[Token], index: int, *_rest: Any) -> str:
    token = tokens[index]
    language = (token.info.split() or [""])[0]
    if language.lower() in ("math", "latex-math"):
        return str(render_formula(token.content, is_block=True))
    return str(Markup("<pre><code>{}</code></pre>\n").format(highlight_code(token.content, language)))


def _render_inline_formula(_: Any, tokens: Sequence[Token], index: int, _options: Any, env: dict[str, int]) -> str:
    token = tokens[index]
    env["formulas"] = env.get("formulas", 0) + 1
    if env["formulas"] > _MAX_FORMULAS:
        return str(Markup("<code>{}</code>").format(token.content))
    return str(render_formula(token.content, is_block=bool(token.meta["is_block"])))


def _render_block_formula(_: Any, tokens: Sequence[Token], index: int, *_rest: Any) -> str:
    return f"<p>{render_formula(tokens[index].content, is_block=True)}</p>\n"


def _mark_task_lists(tokens: Sequence[Token]) -> None:
    """Replace `[ ]` and `[x]` at the beginning of a list item by ☐ and ☑."""
    for item, _, inline in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if item.type != "list_item_open" or inline.type != "inline" or not inline.children:
            continue
        first = inline.children[0]
        box = {"[ ] ": "☐ ", "[x] ": "☑ ", "[X] ": "☑ "}.get(first.content[:4]) if first.type == "text" else None
        if box:
            first.content = box + first.content[4:]


def _flatten_links(token: Token) -> Token:
    """Replace the links and images of a token by `label (address)` and `[image: label, address]`."""
    if token.children is None:
        return token
    tokens: list[Token] = []
    address, label = "", ""
    for child in token.children:
        if child.type == "link_open":
            address, label = str(child.attrs.get("href", "")), ""
        elif child.type == "link_close":
            tokens += [_text_token(f" ({address})")] if address not in (label, f"mailto:{label}") else []
        elif child.type == "image":
            tokens.append(_text_token(f"[image: {child.content}, {child.attrs.get('src', '')}]"))
        else:
            label += child.content
            tokens.append(child)
    token.children = tokens
    return token


def _text_token(text: str) -> Token:
    token = Token("text", "", 0)
    token.content = text
    return token


def _build_parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "linkify": False}).enable(["table", "strikethrough"])
    parser.use(math_plugin)
    parser.add_render_rule("fence", _render_fence)
    parser.add_render_rule("math_inline", _render_inline_formula)
    parser.add_render_rule("math_block", _render_block_formula)
    return parser


_MARKDOWN = _build_parser()
