"""LaTeX formulas in Markdown as MathML: `$…$`, `$$…$$`, `\\(…\\)`, `\\[…\\]`.

Formulas are untrusted: only the elements and attributes named here reach a page, their text escaped. A formula that
does not parse is shown as it was written.
"""

from __future__ import annotations

import html
import re
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert_to_element
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markupsafe import Markup, escape

_MAX_FORMULA_LENGTH = 2_000  # characters; longer ones stay source text
_LAYOUT_TAGS = {"math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "mfrac", "msqrt", "mroot", "mstyle", "menclose"}
_SCRIPT_TAGS = {"msub", "msup", "msubsup", "munder", "mover", "munderover", "mmultiscripts", "mprescripts"}
MATH_TAGS = _LAYOUT_TAGS | _SCRIPT_TAGS | {"mtable", "mtr", "mtd", "none"}
"""Without `mphantom`, which would hide its content."""
MATH_ATTRIBUTES = {
    "display": {"inline", "block"},
    "accent": {"true", "false"},
    "accentunder": {"true", "false"},
    "stretchy": {"true", "false"},
    "fence": {"true", "false"},
    "form": {"prefix", "infix", "postfix"},
    "mathvariant": {"normal", "bold", "italic", "bold-italic", "double-struck", "script", "fraktur", "monospace"},
    "columnalign": {"left", "center", "right", "right left"},
    "linethickness": {"0"},
    "notation": {"box", "updiagonalstrike", "downdiagonalstrike"},
    "width": {"0.167em", "0.222em", "0.278em", "1em", "2em"},
}
"""Colors, sizes and negative spaces are left out: they could hide text or cover it."""
_ALIGNED = re.compile(r"(\\(?:begin|end)\{)(?:aligned|split|gathered|gather\*?|eqnarray\*?)\}")


def render_formula(source: str, *, is_block: bool) -> Markup:
    """Render LaTeX as MathML, or as its source if it does not parse."""
    tag = "pre" if is_block else "code"
    if len(source) <= _MAX_FORMULA_LENGTH:
        try:
            latex = _ALIGNED.sub(r"\1align*}", source)
            return _serialize(convert_to_element(latex, display="block" if is_block else "inline"))
        # The library raises its own errors, and IndexError, KeyError or RecursionError, for what it cannot parse.
        except Exception:
            pass
    return Markup("<{0}>{1}</{0}>").format(tag, source)


def _serialize(element: Element) -> Markup:
    content = escape(html.unescape(element.text or ""))
    for child in element:
        content += _serialize(child) + escape(html.unescape(child.tail or ""))
    if element.tag not in MATH_TAGS:
        return Markup("<mrow>{}</mrow>").format(content)
    attributes = Markup().join(
        Markup(' {}="{}"').format(name, value)
        for name, value in element.attrib.items()
        if value in MATH_ATTRIBUTES.get(name, ())
    )
    return Markup("<{0}{1}>{2}</{0}>").format(element.tag, attributes, content)


def math_plugin(markdown: MarkdownIt) -> None:
    """Add the rules for formulas to a parser; its renderer needs `math_inline` and `math_block`."""
    markdown.inline.ruler.before("escape", "math_inline", _parse_inline)
    markdown.block.ruler.before("fence", "math_block", _parse_block, {"alt": ["paragraph", "blockquote", "list"]})


def _parse_inline(state: StateInline, silent: bool) -> bool:
    start, end = _find_inline(state.src, state.pos, state.posMax)
    if not end:
        return False
    if not silent:
        token = state.push("math_inline", "math", 0)
        token.content = state.src[state.pos + start : end].strip()
        token.meta = {"is_block": state.src.startswith(("$$", "\\["), state.pos)}
    state.pos = end + start
    return True


def _find_inline(text: str, position: int, limit: int) -> tuple[int, int]:
    """Return (length of the delimiter, index of the closing delimiter); (0, 0) where no formula starts."""
    for opening, closing in (("$$", "$$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if text.startswith(opening, position):
            end = text.find(closing, position + 2, min(limit, position + _MAX_FORMULA_LENGTH))
            return (2, end) if end > position + 2 else (0, 0)
    if text[position] != "$":
        return 0, 0
    end = text.find("$", position + 1, min(limit, position + _MAX_FORMULA_LENGTH))
    body = text[position + 1 : end] if end > 0 else ""
    before, after = text[position - 1 : position], text[end + 1 : end + 2]
    # Amounts of money are no formulas: "$5 and $6" (Pandoc's rules for dollars).
    is_money = not body or body[0].isspace() or body[-1].isspace() or after.isdigit() or before.isalnum()
    return (0, 0) if is_money or body.endswith("\\") or "\n\n" in body else (1, end)


def _parse_block(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
    """Parse a formula that starts a line and whose closing delimiter ends one."""
    if state.is_code_block(start_line):
        return False
    begin = state.bMarks[start_line] + state.tShift[start_line]
    closing = {"$$": "$$", "\\[": "\\]"}.get(state.src[begin : begin + 2])
    if closing is None:
        return False
    end = state.src.find(closing, begin + 2, begin + _MAX_FORMULA_LENGTH)
    if end < 0:
        return False
    line = start_line
    while line < end_line and state.eMarks[line] < end:
        line += 1
    source = state.src[begin + 2 : end]
    # The formula ends its line, within this list item or quotation, and has no blank lines.
    if line >= end_line or state.src[end + 2 : state.eMarks[line]].strip() or re.search(r"\n\s*\n", source):
        return False
    if not silent:
        token = state.push("math_block", "math", 0)
        token.content = "\n".join(row.strip().lstrip("> ") for row in source.split("\n")).strip()
        token.map = [start_line, line + 1]
    state.line = line + 1
    return True
