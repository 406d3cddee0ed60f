"""Rendering of Markdown on the server: highlighted code, formulas, task lists; hostile input.

Run: python -m pytest tests/label/web/test_markdown.py
"""

from __future__ import annotations

from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.site import add_person, client_of, make_site

from instructgpt.label import markdown
from instructgpt.label.markdown import render_markdown
from instructgpt.label.mathematics import MATH_ATTRIBUTES, MATH_TAGS, render_formula


class Page(HTMLParser):
    """Tags with attributes, and the text, as a browser reads them."""

    def __init__(self, html) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(str(html))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def names(html) -> list[str]:
    return [tag for tag, _ in Page(html).tags]


@pytest.mark.parametrize("written", ["$x^2$", r"\(x^2\)"])
def test_inline_formula_is_mathml(written):
    html = str(render_markdown(f"so {written} is"))
    math = ElementTree.fromstring(html[html.index("<math") : html.index("</math>") + 7])
    assert [element.tag for element in math.iter()] == ["math", "mrow", "msup", "mi", "mn"]
    assert math.get("display") == "inline"
    assert "".join(math.itertext()) == "x2"


@pytest.mark.parametrize("written", ["$$\n\\frac{a}{b}\n$$", "\\[ \\frac{a}{b} \\]", "```math\n\\frac{a}{b}\n```"])
def test_block_formula_is_mathml(written):
    read = Page(render_markdown(f"before\n\n{written}\n\nafter"))
    assert dict(read.tags)["math"] == {"display": "block"}
    assert "mfrac" in names(render_markdown(written))


@pytest.mark.parametrize(
    "written", ["It costs $5 and $6.", "from $ 5 to 6 $", "`$x$`", "```\n$x$\n```", "US$10 or CA$20", r"\$x\$", "$$"]
)
def test_money_and_code_are_no_formulas(written):
    assert "math" not in names(render_markdown(written))


@pytest.mark.parametrize("source", [r"\frac{", "{" * 5_000, r"\left( x", "x" * 2_001, r"\begin{matrix}"])
def test_formula_that_does_not_parse_is_shown_as_written(source):
    html = render_formula(source, is_block=False)
    assert names(html) == ["code"]
    assert Page(html).text == source


def test_formula_hides_nothing_and_names_no_address():
    html = render_markdown(
        r"$\phantom{secret}\color{white}{pale}\hspace{-9em}\href{javascript:1}{x}\text{<b>bold</b>}$"
    )
    read = Page(html)
    assert "".join(read.text.split()) == "secretpalex<b>bold</b>"
    for tag, attributes in read.tags:
        assert tag in MATH_TAGS | {"p"}
        assert all(value in MATH_ATTRIBUTES[name] for name, value in attributes.items())


def test_code_is_highlighted_by_classes():
    read = Page(render_markdown("```py\ndef f(x):\n    return '<b>'\n```"))
    assert ("span", {"class": "k"}) in read.tags
    assert read.text == "def f(x):\n    return '<b>'\n\n"


@pytest.mark.parametrize("language", ["", "nolanguage", "python" + "\x00", "../../etc"])
def test_unknown_language_is_plain_code(language):
    assert names(render_markdown(f"```{language}\nx = 1\n```")) == ["pre", "code"]


def test_every_offered_lexer_exists():
    for name in markdown.LEXERS:
        assert Page(markdown.highlight_code("x = 1 <b>\n", name)).text == "x = 1 <b>\n", name


def test_task_lists_are_signs():
    assert Page(render_markdown("- [ ] open\n- [x] done\n- [y] text")).text.split("\n")[1:4] == [
        "☐ open",
        "☑ done",
        "[y] text",
    ]


PIECES = [
    "$",
    "$$",
    "\\(",
    "\\)",
    "\\[",
    "\\]",
    "```",
    "```python\n",
    "\n",
    "\\frac",
    "{",
    "}",
    "\\text{",
    "<b>",
    "|",
    "|-|",
]


@given(st.lists(st.sampled_from([*PIECES, "x", " ", "&", "\\begin{align}", "\\end{align}", "> ", "- "]), max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_mixture_gives_only_known_tags(pieces):
    for tag, attributes in Page(render_markdown("".join(pieces))).tags:
        assert tag in markdown.ALLOWED_TAGS | MATH_TAGS | {"span"}
        for name, value in attributes.items():
            assert (tag == "span" and name == "class" and set(value.split()) <= markdown.HIGHLIGHT_CLASSES) or (
                tag in MATH_TAGS and value in MATH_ATTRIBUTES[name]
            )


def test_number_of_formulas_of_a_text_is_limited():
    read = names(render_markdown("$a$ " * 600))
    assert (read.count("math"), read.count("code")) == (500, 100)


def test_preview_renders_for_people_who_are_signed_in(tmp_path):
    site = make_site(tmp_path)
    labeler = client_of(site, add_person(site))
    answer = labeler.post("/api/v1/preview", json={"text": "**b** <script>x</script> $y$"})
    assert names(answer.json()["html"])[:3] == ["p", "strong", "math"]
    assert labeler.post("/api/v1/preview", json={"text": "x" * 200_001}).status_code == 422
    assert client_of(site).post("/api/v1/preview", json={"text": "x"}).status_code == 401
    site.database.close()


def test_instructions_are_previewed_before_they_are_published(tmp_path):
    site = make_site(tmp_path)
    owner = client_of(site, add_person(site, "olga", role="owner"))
    fields = {"body_en": "# Be kind\n\n| a |\n|---|\n| 1 |", "quiz_en": "questions: [", "changes": "new"}
    page = owner.post("/instructions/training/preview", data=fields)
    assert page.status_code == 422, "a quiz that does not parse is named, with the preview"
    assert "<h1>Be kind</h1>" in page.text
    page = owner.post("/instructions/training/preview", data={**fields, "quiz_en": ""})
    assert page.status_code == 200
    assert "<table>" in page.text
    assert "# Be kind" in page.text, "the text stays in its field"
    assert owner.get("/instructions/training").status_code == 404, "nothing was published"
    site.database.close()
