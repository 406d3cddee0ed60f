"""The ranking board in a real browser: nine completions with ties by drag, keys and tap; stored rows equal the screen.

Run: python -m pytest tests/label/web/test_ranking_board.py
"""

from __future__ import annotations

import json
from random import Random

import pytest
from sqlalchemy import select
from support.browser import LETTERS, add_ranking, browser, server, sign_in, watched  # noqa: F401
from support.site import add_person

from instructgpt.label.db.models import Assignment, RankingItem, RankingRow, Submission

TEXTS = [f"Completion number {number}: {'quite ' * number}good." for number in range(9)]


def random_tiers(rng: Random) -> dict[str, int]:
    """A tier (from 1) for each letter, in the order in which they are to be placed;
    many orders have ties and empty tiers.
    """
    letters = list(LETTERS)
    rng.shuffle(letters)
    return {letter: rng.randint(1, 9) for letter in letters}


def as_text(tiers: dict[str, int]) -> str:
    """The order as people write it, made without the site's code."""
    groups = {}
    for letter in sorted(tiers):
        groups.setdefault(tiers[letter], []).append(letter)
    return " > ".join(" = ".join(groups[tier]) for tier in sorted(groups))


def stored(site) -> dict[str, tuple[int, int]]:
    """(tier, rank) of each letter as the tables have it now."""
    with site.database.read() as db:
        submission = db.scalars(select(Submission).where(Submission.replaced_at.is_(None))).one()
        shown = db.get_one(Assignment, submission.assignment_id).shown
        rows = db.scalars(select(RankingItem).where(RankingItem.submission_id == submission.id)).all()
        assert [shown[row.shown] for row in rows] == [row.completion_id for row in rows]
        return {LETTERS[row.shown]: (row.tier, row.rank) for row in rows}


def expected(tiers: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Dense ranks by counting: one more than the number of different tiers above."""
    return {letter: (tier, 1 + len({each for each in tiers.values() if each < tier})) for letter, tier in tiers.items()}


def by_keys(page, tiers: dict[str, int]) -> None:
    before = None
    for letter, tier in tiers.items():
        page.keyboard.press(letter.lower())
        page.keyboard.press("=" if tier == before else str(tier))
        before = tier


def by_drag(page, tiers: dict[str, int]) -> None:
    for letter, tier in tiers.items():
        card = page.locator(".card", has=page.locator(f".letter:text-is('{letter}')")).locator(".take")
        zone = page.locator(f"li[data-tier='{tier - 1}']")
        zone.scroll_into_view_if_needed()
        start, end = card.bounding_box(), zone.bounding_box()
        page.mouse.move(start["x"] + 30, start["y"] + start["height"] / 2)
        page.mouse.down()
        page.mouse.move(start["x"] + 60, start["y"] + 30, steps=2)
        page.mouse.move(end["x"] + end["width"] / 2, end["y"] + end["height"] / 2, steps=3)
        page.mouse.up()


def by_tap(page, tiers: dict[str, int]) -> None:
    for letter, tier in tiers.items():
        page.locator(".card", has=page.locator(f".letter:text-is('{letter}')")).locator(".take").tap()
        page.locator(f"li[data-tier='{tier - 1}'] .slot").tap()


WAYS = {
    "keys": (by_keys, {"viewport": {"width": 1366, "height": 800}}),
    "drag": (by_drag, {"viewport": {"width": 1366, "height": 1300}}),
    "tap": (by_tap, {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}),
}


def open_task(browser, server, watched, **options):  # noqa: F811
    """A task page of nine completions, at its board."""
    person = add_person(server.site)
    add_ranking(server.site, "Say something good.", TEXTS)
    context = browser.new_context(**options)
    watched.watch(context, server.url)
    sign_in(context, server, person)
    page = context.new_page()
    page.goto(f"{server.url}/home")
    page.locator("form:has(input[value=rank]) button").click()
    page.wait_for_selector("form[data-ready]")
    return page


def to_board(page) -> None:
    page.wait_for_selector("form[data-ready]")
    page.locator("button.stage[data-stage=rank]").click()


@pytest.mark.parametrize("way", WAYS)
def test_stored_ranking_equals_the_screen(way, browser, server, watched):  # noqa: F811
    place, options = WAYS[way]
    page = open_task(browser, server, watched, **options)
    to_board(page)
    rng = Random(way)
    for round_number in range(3):
        for _ in range({"keys": 4, "drag": 1, "tap": 1}[way]):
            tiers = random_tiers(rng)
            place(page, tiers)
            assert page.locator("#board .order strong").inner_text() == as_text(tiers)
        assert page.locator("#submit").get_attribute("aria-disabled") == "false"
        if way == "keys":
            page.keyboard.press("Control+Enter")
        else:
            page.locator("#submit").click()
        page.wait_for_url("**/done")
        assert stored(server.site) == expected(tiers)
        assert page.locator("#stored .order").inner_text() == as_text(tiers)
        if round_number < 2:
            page.locator("#undo").click()
            to_board(page)
            assert page.locator("#board .order strong").inner_text() == as_text(tiers)


def test_submit_needs_every_completion_placed_and_no_order_is_preset(browser, server, watched):  # noqa: F811
    page = open_task(browser, server, watched)
    to_board(page)
    assert page.locator("#board .order strong").inner_text() == "–"
    assert page.locator(".tray [data-card]").count() == 9
    by_keys(page, dict.fromkeys(LETTERS[:8], 1))
    page.keyboard.press("Control+Enter")
    page.locator("#submit").click(force=True)
    assert page.locator("#missing").inner_text().endswith("I")
    assert not page.url.endswith("/done")
    with server.site.database.read() as db:
        assert db.scalar(select(Submission.id)) is None


def test_keys_move_undo_and_return_cards(browser, server, watched):  # noqa: F811
    page = open_task(browser, server, watched)
    page.keyboard.press("7")
    page.keyboard.press("ArrowRight") if page.evaluate("document.activeElement.type !== 'radio'") else page.locator(
        ".next:visible"
    ).click()
    page.keyboard.press("2")
    to_board(page)
    order = page.locator("#board .order strong")
    for key in ("b", "1", "a", "2"):  # B, rated 2, above A, rated 7
        page.keyboard.press(key)
    assert order.inner_text() == "B > A"
    assert page.locator(".contradictions").is_visible()
    for key in ("a", "ArrowUp"):
        page.keyboard.press(key)
    assert order.inner_text() == "A = B"
    assert page.locator(".contradictions").is_hidden()
    page.keyboard.press("u")
    assert order.inner_text() == "B > A"
    for key in ("b", "0"):
        page.keyboard.press(key)
    assert order.inner_text() == "A"
    assert "8" in page.locator("#live").inner_text()
    page.keyboard.press("d")
    page.keyboard.press("Enter")
    assert page.locator("dialog[open] .letter").inner_text() == "D"
    page.keyboard.press("Escape")
    page.keyboard.press("Shift+C")
    assert page.locator("dialog[open] mark").count() > 0
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("#keys-dialog").is_visible()
    page.locator("#keys-on").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("5")
    assert order.inner_text() == "A"


def test_ratings_labels_and_notes_are_stored_as_answered(browser, server, watched):  # noqa: F811
    page = open_task(browser, server, watched)
    page.keyboard.press("6")
    first = page.locator("section.rate:visible")
    first.locator(".ask").nth(1).locator("input[value=na]").check(force=True)
    first.locator(".ask").nth(0).locator("input[value=yes]").check(force=True)
    page.keyboard.press("x")
    assert first.locator(".ask.filled").count() == 8  # No to "satisfies the constraint" is a reproach: by hand only
    first.locator("textarea").fill("looks fine\n둘째 줄")
    to_board(page)
    by_keys(page, dict.fromkeys(LETTERS, 3))
    page.locator("[name=none_acceptable]").check()
    page.locator("[name=confidence]").select_option("4")
    page.locator("#submit").click()
    page.wait_for_url("**/done")
    with server.site.database.read() as db:
        submission = db.scalars(select(Submission)).one()
        ranking = db.get_one(RankingRow, submission.id)
        assert (ranking.none_acceptable, ranking.confidence) == (True, 4)
    form = page.evaluate(
        "fetch(location.pathname.replace('/tasks/', '/api/v1/assignments/').replace('/done', '')).then(a => a.json())"
    )
    [rated] = form["submission"]["ratings"]
    assert rated["rating"] == 6
    assert rated["note"] == "looks fine\n둘째 줄"
    assert rated["labels"]["fails_instruction"] is True
    assert rated["labels"]["inappropriate"] is None
    assert "satisfies_constraint" not in rated["labels"]
    assert list(rated["labels"].values()).count(False) == 8
    assert json.dumps(form).count("secret-model") == 0


def test_cards_are_dragged_by_finger(browser, server, watched):  # noqa: F811
    page = open_task(browser, server, watched, viewport={"width": 390, "height": 1400}, has_touch=True, is_mobile=True)
    to_board(page)
    card = page.locator(".card", has=page.locator(".letter:text-is('B')"))
    grip, zone = card.locator(".grip").bounding_box(), page.locator("li[data-tier='4']").bounding_box()
    touch = page.context.new_cdp_session(page)
    start, end = (grip["x"] + 8, grip["y"] + 12), (zone["x"] + 200, zone["y"] + 15)
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": start[0], "y": start[1]}]})
    for part in (0.3, 0.6, 1.0):
        point = {"x": start[0] + part * (end[0] - start[0]), "y": start[1] + part * (end[1] - start[1])}
        touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [point]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert page.locator("li[data-tier='4'] .letter").inner_text() == "B"
    assert page.locator("#board .order strong").inner_text() == "B"
