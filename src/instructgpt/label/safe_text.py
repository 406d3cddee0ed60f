"""Safe display of untrusted plain text; `markdown` renders Markdown.

Prompts and completions may be hostile: text is escaped, and each invisible character (zero-width characters, controls,
bidirectional marks) becomes a visible marker.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache

from markupsafe import Markup, escape

_LONG_TEXT_LENGTH = 1_200  # characters; beyond it, or beyond this number of lines, a text is shown collapsed
_LONG_TEXT_LINES = 16
MAX_INITIAL_LENGTH = 20_000  # characters; browsers lay out very long lines slowly

_BIDI_CONTROLS = {
    **{"\u200e": "LRM", "\u200f": "RLM", "\u061c": "ALM"},
    **{"\u202a": "LRE", "\u202b": "RLE", "\u202c": "PDF", "\u202d": "LRO", "\u202e": "RLO"},
    **{"\u2066": "LRI", "\u2067": "RLI", "\u2068": "FSI", "\u2069": "PDI"},
}
"""Unicode Standard Annex 9."""
# Without width, or without ink where a reader expects some.
_INVISIBLE_CHARACTERS = {
    **{"\u200b": "ZWSP", "\u200c": "ZWNJ", "\u200d": "ZWJ", "\u2060": "WJ", "\ufeff": "BOM", "\u00ad": "SHY"},
    **{"\u180e": "MVS", "\u2061": "FA", "\u2062": "IT", "\u2063": "IS", "\u2064": "IP", "\u034f": "CGJ"},
    **{"\u115f": "HCF", "\u1160": "HJF", "\u3164": "HF", "\uffa0": "HHF", "\u2028": "LS", "\u2029": "PS"},
}

_UNSAFE_PATTERN = re.compile(
    "["
    + "".join((*_BIDI_CONTROLS, *_INVISIBLE_CHARACTERS))
    + "\x00-\x08\x0b-\x1f\x7f-\x9f\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff]"
)

# First match wins: most browsers also claim to be the ones below them.
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
_SYSTEM_NAMES = {
    "Android": "Android",
    "iPhone": "iPhone",
    "iPad": "iPad",
    "Windows": "Windows",
    "Mac OS X": "macOS",
    "CrOS": "ChromeOS",
    "Linux": "Linux",
}


def escape_text(text: str) -> Markup:
    """Escape plain text and mark invisible characters; the style sheet keeps white space."""
    escaped = str(escape(_normalize_newlines(text)))  # changes neither invisible characters nor a joiner's neighbors
    return Markup(_replace_invisible(escaped, _invisible_marker))


def show_invisible(text: str) -> str:
    """Replace invisible characters by their name in ‹ › or a control picture, as text."""
    return _replace_invisible(_normalize_newlines(text), _visible_name)


def _replace_invisible(text: str, replace: Callable[[str], str]) -> str:
    return _UNSAFE_PATTERN.sub(
        lambda odd: odd.group() if _is_valid_joiner(text, odd.start()) else replace(odd.group()), text
    )


def one_line_preview(text: str, length: int = 140) -> str:
    """Return the beginning of a text on one line."""
    line = " ".join(show_invisible(text[: 4 * length]).split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def is_long_text(text: str) -> bool:
    """Return whether a page shows a text collapsed."""
    return len(text) > _LONG_TEXT_LENGTH or text.count("\n") >= _LONG_TEXT_LINES


def split_long_text(text: str) -> tuple[str, str]:
    """Split a text into the part that is laid out at once and the rest, after a space if one is near."""
    if len(text) <= MAX_INITIAL_LENGTH:
        return text, ""
    space = max(text.rfind(character, MAX_INITIAL_LENGTH - 500, MAX_INITIAL_LENGTH) for character in " \n")
    cut = space + 1 or MAX_INITIAL_LENGTH
    return text[:cut], text[cut:]


def _normalize_newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _is_valid_joiner(text: str, index: int) -> bool:
    """Return whether a joiner is orthography: between letters of a script that needs it, or within an emoji."""
    if text[index] not in "\u200c\u200d" or not 0 < index < len(text) - 1:
        return False
    before, after = text[index - 1], text[index + 1]
    if text[index] == "\u200d" and unicodedata.category(after) == "So":
        return unicodedata.category(before) in ("So", "Sk", "Mn")
    return all(unicodedata.category(c) in ("Lo", "Mn", "Mc") and c > "\u0590" for c in (before, after))


def _visible_name(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    return f"‹{_BIDI_CONTROLS.get(character) or _INVISIBLE_CHARACTERS.get(character) or f'U+{code:04X}'}›"


@cache
def _invisible_marker(character: str) -> Markup:
    name, text = unicodedata.name(character, "control character").lower(), _visible_name(character)
    return Markup('<span class="odd" title="U+{:04X} {}">{}</span>').format(ord(character), name, text)


def format_user_agent(user_agent: str) -> str:
    """Format a User-Agent header as `Firefox · Windows`; unknown ones unchanged."""
    name = next((name for mark, name in _BROWSER_NAMES.items() if mark in user_agent), None)
    system = next((name for mark, name in _SYSTEM_NAMES.items() if mark in user_agent), None)
    return " · ".join(part for part in (name, system) if part) or show_invisible(user_agent)
