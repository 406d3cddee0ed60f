"""Other people's text, made safe to show and with nothing hidden in it.

Prompts and completions are hostile until shown otherwise. As plain text, everything is shown as it was written, and what could not be
seen (zero-width characters, NUL and other controls, marks that reorder what follows) becomes a small sign, so that it can be seen and
does nothing. Rendered Markdown keeps text, lists, tables and emphasis; links and images become text, so that nothing is fetched.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

import nh3
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape

_LONG_TEXT_LENGTH = 1_200
"""Characters, or the worth of LONG_LINES lines: a text beyond it is folded to a box of its own."""
_LONG_TEXT_LINES = 16
MAX_INITIAL_LENGTH = 20_000
"""Characters laid out at first; the rest opens on demand, since a browser lays out a line of 200,000 letters slowly."""
MAX_MARKDOWN_LENGTH = 20_000
"""Characters; Markdown beyond it is shown plain."""

_BIDI_CONTROLS = {
    "\u200e": "LRM",
    "\u200f": "RLM",
    "\u061c": "ALM",
    "\u202a": "LRE",
    "\u202b": "RLE",
    "\u202c": "PDF",
    "\u202d": "LRO",
    "\u202e": "RLO",
    "\u2066": "LRI",
    "\u2067": "RLI",
    "\u2068": "FSI",
    "\u2069": "PDI",
}
"""Marks and controls of direction (Unicode Standard Annex 9)."""
_INVISIBLE_CHARACTERS = {
    "\u200b": "ZWSP",
    "\u200c": "ZWNJ",
    "\u200d": "ZWJ",
    "\u2060": "WJ",
    "\ufeff": "BOM",
    "\u00ad": "SHY",
    "\u180e": "MVS",
    "\u2061": "FA",
    "\u2062": "IT",
    "\u2063": "IS",
    "\u2064": "IP",
    "\u115f": "HCF",
    "\u1160": "HJF",
    "\u3164": "HF",
    "\uffa0": "HHF",
    "\u2028": "LS",
    "\u2029": "PS",
    "\u034f": "CGJ",
}
"""What has no width, or no ink where ink is expected."""

_UNSAFE_PATTERN = re.compile(
    "["
    + "".join((*_BIDI_CONTROLS, *_INVISIBLE_CHARACTERS))
    + "\x00-\x08\x0b-\x1f\x7f-\x9f\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff]"
)

_BROWSER_NAMES = {
    "Edg": "Edge",
    "OPR/": "Opera",
    "SamsungBrowser": "Samsung Internet",
    "Firefox/": "Firefox",
    "FxiOS": "Firefox",
    "Chrome/": "Chrome",
    "CriOS": "Chrome",
    "Safari/": "Safari",
}
"""Marks in what browsers call themselves; most of them also claim to be the later ones."""
_SYSTEM_NAMES = {
    "Android": "Android",
    "iPhone": "iPhone",
    "iPad": "iPad",
    "Windows": "Windows",
    "Mac OS X": "macOS",
    "CrOS": "ChromeOS",
    "Linux": "Linux",
}

ALLOWED_TAGS = {
    "p",
    "br",
    "hr",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "ul",
    "ol",
    "li",
    "blockquote",
    "pre",
    "code",
    "em",
    "strong",
    "s",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
}


def escape_text(text: str) -> Markup:
    """Text as it was written, escaped, with signs for what cannot be seen. Spaces and line breaks are kept by the style sheet."""
    escaped = str(
        escape(_normalize_newlines(text))
    )  # escaping touches neither what is odd nor the letters around a joiner
    return Markup(
        _UNSAFE_PATTERN.sub(
            lambda match: (
                match.group() if _is_valid_joiner(escaped, match.start()) else _invisible_marker(match.group())
            ),
            escaped,
        )
    )


def show_invisible(text: str) -> str:
    """The same as a string: each character that cannot be seen as its name in ‹ ›, or as a control picture."""
    text = _normalize_newlines(text)
    return _UNSAFE_PATTERN.sub(
        lambda match: match.group() if _is_valid_joiner(text, match.start()) else _visible_name(match.group()), text
    )


def render_markdown(text: str) -> Markup:
    """Markdown as HTML of a few harmless tags. Raw HTML stays text, links and images become text."""
    if len(text) > MAX_MARKDOWN_LENGTH:
        return Markup("<pre>") + escape_text(text) + Markup("</pre>")
    tokens = _MARKDOWN.parse(show_invisible(text))
    html = _MARKDOWN.renderer.render([_flatten_links(token) for token in tokens], _MARKDOWN.options, {})
    return Markup(nh3.clean(html, tags=ALLOWED_TAGS, attributes={}, link_rel=None))


def one_line_preview(text: str, length: int = 140) -> str:
    """The beginning of a text on one line, for cards and lists."""
    line = " ".join(show_invisible(text[: 4 * length]).split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def is_long_text(text: str) -> bool:
    """Whether a text is folded at first."""
    return len(text) > _LONG_TEXT_LENGTH or text.count("\n") >= _LONG_TEXT_LINES


def split_long_text(text: str) -> tuple[str, str]:
    """What is laid out at once, and the rest; cut behind a space where there is one nearby."""
    if len(text) <= MAX_INITIAL_LENGTH:
        return text, ""
    cut = (
        max(
            text.rfind(" ", MAX_INITIAL_LENGTH - 500, MAX_INITIAL_LENGTH),
            text.rfind("\n", MAX_INITIAL_LENGTH - 500, MAX_INITIAL_LENGTH),
        )
        + 1
        or MAX_INITIAL_LENGTH
    )
    return text[:cut], text[cut:]


def _normalize_newlines(text: str) -> str:
    """Windows' and old line ends as plain ones: they are not odd."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _is_valid_joiner(text: str, index: int) -> bool:
    """Whether a joiner does its honest work: between letters of a script that needs it (Persian, Hindi …), or within an emoji."""
    if text[index] not in "\u200c\u200d" or not 0 < index < len(text) - 1:
        return False
    before, after = text[index - 1], text[index + 1]
    if text[index] == "\u200d" and unicodedata.category(after) == "So":
        return unicodedata.category(before) in ("So", "Sk", "Mn")
    return all(
        unicodedata.category(neighbor) in ("Lo", "Mn", "Mc") and neighbor > "\u0590" for neighbor in (before, after)
    )


def _visible_name(character: str) -> str:
    """What stands for a character that cannot be seen."""
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    return f"‹{_BIDI_CONTROLS.get(character) or _INVISIBLE_CHARACTERS.get(character) or f'U+{code:04X}'}›"


@cache
def _invisible_marker(character: str) -> Markup:
    """The small sign of a character, with its full name for whoever asks."""
    name = unicodedata.name(character, "control character").lower()
    return Markup('<span class="odd" title="U+{:04X} {}">{}</span>').format(
        ord(character), name, _visible_name(character)
    )


def _flatten_links(token: Token) -> Token:
    """A token whose links and images have become text: `label (address)`, `[image: label, address]`."""
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
    """A token of plain words."""
    token = Token("text", "", 0)
    token.content = text
    return token


_MARKDOWN = MarkdownIt("commonmark", {"html": False, "linkify": False}).enable(["table", "strikethrough"])


def format_user_agent(user_agent: str) -> str:
    """What a browser calls itself, in two words a person knows (`Firefox · Windows`); as it stands where it is none of these."""
    name = next((name for mark, name in _BROWSER_NAMES.items() if mark in user_agent), None)
    system = next((name for mark, name in _SYSTEM_NAMES.items() if mark in user_agent), None)
    return " · ".join(part for part in (name, system) if part) or show_invisible(user_agent)
