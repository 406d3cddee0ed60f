"""Where things stand on a screen of 1280 pixels and on a phone, in Chromium: boxes, not screenshots.

pytest tests/label/web/test_layout.py
"""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest
from support import owner as owner_support
from support.browser import add_ranking, browser, serving, sign_in, watched  # noqa: F401
from support.owner import people
from support.site import add_person, make_site

from instructgpt.label import web

STATES = ("clean", "waiting", "saving", "saved", "failed", "signed_out", "conflict")
COVERED = """element => {
    const box = element.getBoundingClientRect(), top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
    return !(element === top || element.contains(top) || top?.contains(element));
}"""
CUT_TEXTS = """chart => {
    const frame = chart.getBoundingClientRect(), cut = [];
    const meets = (a, b) => a.left < b.right + 1 && b.left < a.right + 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
    const texts = [...chart.querySelectorAll("text")].filter(text => text.getClientRects().length);
    const lines = [...chart.querySelectorAll("line:not([stroke-dasharray])")];
    for (const text of texts) {
        const box = text.getBoundingClientRect();
        // half a pixel: boxes are rounded
        const isInside = box.left >= frame.left - .5 && box.right <= frame.right + .5 && box.top >= frame.top - .5
            && box.bottom <= frame.bottom + .5;
        const others = [...texts.filter(other => other !== text), ...lines];
        if (!isInside || others.some(other => meets(box, other.getBoundingClientRect()))) cut.push(text.textContent);
    }
    return cut;
}"""
LINES = """line => Math.round(line.getBoundingClientRect().height / parseFloat(getComputedStyle(line).lineHeight))"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A site with a ranking of nine long texts for each labeler, and labelers who disagree."""
    site = make_site(tmp_path_factory.mktemp("site"))
    rng = Random(4)
    words = ("garden", "green", "in", "a", "dry", "summer", "without", "much", "water", "or", "time")
    for number in range(6):
        texts = ["Sure! Here is " + " ".join(rng.choices(words, k=80)) for _ in range(9)]
        add_ranking(site, f"How do I keep a garden green? {number}", texts, name=f"long {number}")
    filled, crew = (
        owner_support.fill(site, tasks=6, name="work"),
        people(site, "Bernhardine van der Woude", "cy", "dora"),
    )
    for task in range(6):
        for number, person in enumerate(crew):
            ranks = [1, 2, 3] if number == 0 else rng.sample([1, 2, 3], 3)
            filled.rank(task, person, ranks, ratings=[4, 5, 3], active=400 if number == 0 else 60_000)
    filled.save()
    with serving(site) as running:
        yield running


def test_no_class_is_laid_out_by_two_stylesheets_of_a_page():
    """Of two rules for one class the later one wins, and the page looks as nobody wrote it."""
    folder = Path(web.__file__).parent / "static"
    classes = {
        file.name: set(re.findall(r"^(\.[a-z][\w-]*) \{", file.read_text(), re.MULTILINE))
        for file in folder.glob("*.css")
    }
    common = classes.pop("site.css") | classes.pop("text.css")
    assert {name: sorted(names & common) for name, names in classes.items() if names & common} == {}


def open_board(server, browser, watched, name, width, height, **options):  # noqa: F811
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    watched.watch(context, server.url)
    sign_in(context, server, add_person(server.site, name))
    page = context.new_page()
    page.goto(f"{server.url}/home")
    page.locator("form:has(input[value=rank]) button").click()
    page.wait_for_selector("form[data-ready]")
    return page


def test_every_card_shows_two_lines(browser, server, watched):  # noqa: F811
    """At 1280 x 800, in a full tray, beside filled tiers, and in the tiers; none covers another."""
    page = open_board(server, browser, watched, "ada", 1280, 800)
    page.locator("button.stage[data-stage=rank]").click()
    for keys in ("", "a1b1", "c2d3e4f5", "g6h7i8"):
        for key in keys:
            page.keyboard.press(key)
        cards = page.locator("#board .card").all()
        assert len(cards) == 9
        for card in cards:
            line = card.locator(".line")
            assert line.evaluate(LINES) >= 2, f"a card shows one line after {keys}"
            text = line.evaluate("line => line.clientWidth * 2 / (parseFloat(getComputedStyle(line).fontSize) * 0.5)")
            assert text >= 50, f"a card has room for {text:.0f} letters after {keys}"
    for top in range(0, 1200, 150):
        page.evaluate(f"window.scrollTo(0, {top})")
        for card in page.locator("#board .card .line").all():
            box = card.bounding_box()
            if box["y"] > 80 and box["y"] + box["height"] < 790:
                assert not card.evaluate(COVERED), f"a card is covered at {top} pixels"


@pytest.mark.parametrize("language", ["en", "ko"])
def test_the_head_of_a_task_on_a_phone(language, browser, server, watched):  # noqa: F811
    """No state of the draft is printed over the tools; state and trouble stay in sight at the end of the page."""
    for width in (320, 390):
        name = f"{language} {width}"
        page = open_board(server, browser, watched, name, width, 800, has_touch=True, locale=language)
        for state in STATES:
            page.evaluate(
                """async ([state]) => {
                    const { t, formatTime } = await import("/static/i18n.js");
                    const line = document.getElementById("saved"), time = formatTime(Date.now());
                    line.dataset.state = state;
                    line.textContent = t(`save.${state}`, { time, rev: 128 });
                }""",
                [state],
            )
            page.evaluate("window.scrollTo(0, 0)")
            saved = page.locator("#saved").bounding_box()
            for tool in page.locator(".taskbar .tools > *").all():
                box = tool.bounding_box()
                apart = box["y"] >= saved["y"] + saved["height"] - 1 or box["y"] + box["height"] <= saved["y"] + 1
                assert apart, f"{state} is printed over {tool.inner_text()!r} at {width} pixels"
                assert not tool.evaluate(COVERED)
                assert box["x"] >= 0
                assert box["x"] + box["width"] <= width
        page.evaluate("document.getElementById('trouble').textContent = 'trouble'; trouble.hidden = false")
        page.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
        for selector in ("#saved", "#trouble"):
            box = page.locator(selector).bounding_box()
            assert 0 <= box["y"] < 400, f"{selector} scrolls away at {width} pixels"
            assert not page.locator(selector).evaluate(COVERED)
        page.context.close()


def test_charts_show_every_letter(browser, server, watched):  # noqa: F811
    """On a phone and at 1280 pixels no text of a chart leaves it, meets another or a line; days are not in ISO form."""
    context = browser.new_context(viewport={"width": 390, "height": 844}, locale="ko", has_touch=True, is_mobile=True)
    watched.watch(context, server.url)
    sign_in(context, server, add_person(server.site, "olaf", role="owner", language="ko"))
    page = context.new_page()
    page.goto(f"{server.url}/quality")
    labelers = page.locator("a[href^='/quality/labelers/']").all()
    paths = [labeler.get_attribute("href") for labeler in labelers if "van der Woude" in labeler.inner_text()]
    for path in ("/overview", "/quality", paths[0]):
        page.goto(server.url + path)
        charts = page.locator("svg.chart")
        assert charts.count(), path
        for width in (390, 1280):
            page.set_viewport_size({"width": width, "height": 844})
            for chart in charts.all():
                assert chart.evaluate(CUT_TEXTS) == [], f"{path} at {width} pixels"
        days = page.locator("main time").all_inner_texts()
        assert not [day for day in days if re.search(r"\d{4}-\d\d", day)], path


def test_what_owners_come_for_is_in_sight(browser, server, watched):  # noqa: F811
    """At 1280 pixels no table hides its name, its state or its mark behind a scroll bar."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    watched.watch(context, server.url)
    sign_in(context, server, add_person(server.site, "olga", role="owner"))
    page = context.new_page()
    wanted = {"/quality": "Worth a look", "/batches": "State", "/people": "Status", "/search/tasks": "State"}
    wanted |= {"/search/submissions": "State", "/overview": "State"}
    for path, column in wanted.items():
        page.goto(server.url + path)
        headers = page.locator(f"th:has-text('{column}')")
        assert headers.count(), path
        for header in headers.all():
            box, frame = header.bounding_box(), header.locator("xpath=ancestor::div[1]").bounding_box()
            assert box["x"] + box["width"] <= frame["x"] + frame["width"] + 1, f"{path}: {column} is out of sight"
    page.goto(f"{server.url}/quality")
    labelers = page.locator("table:has(th:has-text('Worth a look'))")
    assert labelers.locator("th").all_inner_texts()[1] == "Worth a look"
    assert "hurried" in labelers.inner_text().lower() or labelers.locator(".chip").count()
