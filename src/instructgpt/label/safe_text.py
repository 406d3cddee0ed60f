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

LONG = 1_200
"""Characters, or the worth of LONG_LINES lines: a text beyond it is folded to a box of its own."""
LONG_LINES = 16
SHOWN = 20_000
"""Characters laid out at first; the rest opens on demand, since a browser lays out a line of 200,000 letters slowly."""
RENDERED = 20_000
"""Characters; Markdown beyond it is shown plain."""

BIDI = {
    "\u200e": "LRM", "\u200f": "RLM", "\u061c": "ALM", "\u202a": "LRE", "\u202b": "RLE", "\u202c": "PDF", "\u202d": "LRO", "\u202e": "RLO",
    "\u2066": "LRI", "\u2067": "RLI", "\u2068": "FSI", "\u2069": "PDI",
}  # fmt: skip
"""Marks and controls of direction (Unicode Standard Annex 9)."""
UNSEEN = {
    "\u200b": "ZWSP", "\u200c": "ZWNJ", "\u200d": "ZWJ", "\u2060": "WJ", "\ufeff": "BOM", "\u00ad": "SHY", "\u180e": "MVS",
    "\u2061": "FA", "\u2062": "IT", "\u2063": "IS", "\u2064": "IP", "\u115f": "HCF", "\u1160": "HJF", "\u3164": "HF", "\uffa0": "HHF",
    "\u2028": "LS", "\u2029": "PS", "\u034f": "CGJ",
}  # fmt: skip
"""What has no width, or no ink where ink is expected."""

ODD = re.compile("[" + "".join((*BIDI, *UNSEEN)) + "\x00-\x08\x0b-\x1f\x7f-\x9f\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff]")

BROWSERS = {"Edg": "Edge", "OPR/": "Opera", "SamsungBrowser": "Samsung Internet", "Firefox/": "Firefox", "FxiOS": "Firefox",
            "Chrome/": "Chrome", "CriOS": "Chrome", "Safari/": "Safari"}  # fmt: skip
"""Marks in what browsers call themselves; most of them also claim to be the later ones."""
SYSTEMS = {"Android": "Android", "iPhone": "iPhone", "iPad": "iPad", "Windows": "Windows", "Mac OS X": "macOS", "CrOS": "ChromeOS",
           "Linux": "Linux"}  # fmt: skip

TAGS = {
    "p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "pre", "code", "em", "strong", "s",
    "table", "thead", "tbody", "tr", "th", "td",
}  # fmt: skip


def plain(text: str) -> Markup:
    """Text as it was written, escaped, with signs for what cannot be seen. Spaces and line breaks are kept by the style sheet."""
    written = str(escape(one_line_ends(text)))  # escaping touches neither what is odd nor the letters around a joiner
    return Markup(ODD.sub(lambda found: found.group() if joins(written, found.start()) else sign(found.group()), written))


def visible(text: str) -> str:
    """The same as a string: each character that cannot be seen as its name in ‹ ›, or as a control picture."""
    text = one_line_ends(text)
    return ODD.sub(lambda found: found.group() if joins(text, found.start()) else name_of(found.group()), text)


def rendered(text: str) -> Markup:
    """Markdown as HTML of a few harmless tags. Raw HTML stays text, links and images become text."""
    if len(text) > RENDERED:
        return Markup("<pre>") + plain(text) + Markup("</pre>")
    tokens = MARKDOWN.parse(visible(text))
    html = MARKDOWN.renderer.render([without_addresses(token) for token in tokens], MARKDOWN.options, {})
    return Markup(nh3.clean(html, tags=TAGS, attributes={}, link_rel=None))


def first_line(text: str, length: int = 140) -> str:
    """The beginning of a text on one line, for cards and lists."""
    line = " ".join(visible(text[: 4 * length]).split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def is_long(text: str) -> bool:
    """Whether a text is folded at first."""
    return len(text) > LONG or text.count("\n") >= LONG_LINES


def halves(text: str) -> tuple[str, str]:
    """What is laid out at once, and the rest; cut behind a space where there is one nearby."""
    if len(text) <= SHOWN:
        return text, ""
    cut = max(text.rfind(" ", SHOWN - 500, SHOWN), text.rfind("\n", SHOWN - 500, SHOWN)) + 1 or SHOWN
    return text[:cut], text[cut:]


def one_line_ends(text: str) -> str:
    """Windows' and old line ends as plain ones: they are not odd."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def joins(text: str, place: int) -> bool:
    """Whether a joiner does its honest work: between letters of a script that needs it (Persian, Hindi …), or within an emoji."""
    if text[place] not in "\u200c\u200d" or not 0 < place < len(text) - 1:
        return False
    before, after = text[place - 1], text[place + 1]
    if text[place] == "\u200d" and unicodedata.category(after) == "So":
        return unicodedata.category(before) in ("So", "Sk", "Mn")
    return all(unicodedata.category(each) in ("Lo", "Mn", "Mc") and each > "\u0590" for each in (before, after))


def name_of(character: str) -> str:
    """What stands for a character that cannot be seen."""
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    return f"‹{BIDI.get(character) or UNSEEN.get(character) or f'U+{code:04X}'}›"


@cache
def sign(character: str) -> Markup:
    """The small sign of a character, with its full name for whoever asks."""
    name = unicodedata.name(character, "control character").lower()
    return Markup('<span class="odd" title="U+{:04X} {}">{}</span>').format(ord(character), name, name_of(character))


def without_addresses(token: Token) -> Token:
    """A token whose links and images have become text: `label (address)`, `[image: label, address]`."""
    if token.children is None:
        return token
    kept: list[Token] = []
    address, label = "", ""
    for child in token.children:
        if child.type == "link_open":
            address, label = str(child.attrs.get("href", "")), ""
        elif child.type == "link_close":
            kept += [words(f" ({address})")] if address not in (label, f"mailto:{label}") else []
        elif child.type == "image":
            kept.append(words(f"[image: {child.content}, {child.attrs.get('src', '')}]"))
        else:
            label += child.content
            kept.append(child)
    token.children = kept
    return token


def words(text: str) -> Token:
    """A token of plain words."""
    token = Token("text", "", 0)
    token.content = text
    return token


MARKDOWN = MarkdownIt("commonmark", {"html": False, "linkify": False}).enable(["table", "strikethrough"])


def browser(agent: str) -> str:
    """What a browser calls itself, in two words a person knows (`Firefox · Windows`); as it stands where it is none of these."""
    name = next((name for mark, name in BROWSERS.items() if mark in agent), None)
    system = next((name for mark, name in SYSTEMS.items() if mark in agent), None)
    return " · ".join(part for part in (name, system) if part) or visible(agent)
