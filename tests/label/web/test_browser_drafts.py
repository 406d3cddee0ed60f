"""Work in progress in a real browser: two tabs, a sign-in that ends, a server that dies, a page that is closed. Nothing is lost.

Run: python -m pytest tests/label/web/test_browser_drafts.py
"""

from __future__ import annotations

import pytest
from sqlalchemy import select, update
from support.browser import add_batch, add_ranking, browser, server, sign_in, watched  # noqa: F401
from support.site import add_person

from instructgpt.label.auth import passwords
from instructgpt.label.db.models import Assignment, DemonstrationRow, Draft, Submission, UserSession, current_time_ms

PASSWORD = "correct horse battery staple"


def open_demonstration(browser, server, watched):  # noqa: F811
    """A page on which a demonstration is written, and its person."""
    person = add_person(server.site, password_hash=passwords.hash_password(PASSWORD))
    add_batch(server.site, "demonstrate", ["Explain why the sky is blue."])
    context = browser.new_context()
    watched.watch(context, server.url)
    sign_in(context, server, person)
    page = context.new_page()
    page.goto(f"{server.url}/home")
    page.locator("form:has(input[value=demonstrate]) button").click()
    page.wait_for_selector("form[data-ready]")
    return page, person


def saved(page, state: str = "saved", patiently: bool = False) -> None:
    """Wait for a state of the draft; at once, as when the page is left, or patiently: by itself after three seconds."""
    if not patiently and state != "waiting":
        page.evaluate("dispatchEvent(new Event('pagehide'))")
    page.wait_for_selector(f"#saved[data-state={state}]", timeout=15000)


def draft_text(server) -> str | None:  # noqa: F811
    with server.site.database.read() as db:
        draft = db.scalar(select(Draft))
        return draft.payload["text"] if draft else None


def test_what_is_typed_is_saved_and_there_after_a_reload(browser, server, watched):  # noqa: F811
    page, _ = open_demonstration(browser, server, watched)
    page.locator("#text").press_sequentially("It scatters")
    saved(page, "waiting")
    page.locator("#text").press_sequentially(" blue light.")
    saved(page, patiently=True)
    assert "1" in page.locator("#saved").inner_text()
    assert draft_text(server) == "It scatters blue light."
    assert page.evaluate("localStorage.length") == 0
    page.reload()
    page.wait_for_selector("form[data-ready]")
    assert page.locator("#text").input_value() == "It scatters blue light."


def test_a_page_that_is_closed_at_once_loses_nothing(browser, server, watched):  # noqa: F811
    page, _ = open_demonstration(browser, server, watched)
    page.locator("#text").press_sequentially("Half a thought")
    address, context = page.url, page.context
    page.close()
    other = context.new_page()
    other.goto(address)
    other.wait_for_selector("form[data-ready]")
    assert other.locator("#text").input_value() == "Half a thought"


@pytest.mark.parametrize("leave", ["question", "reload"])
def test_leaving_the_page_while_typing_is_no_conflict_with_oneself(leave, browser, server, watched):  # noqa: F811
    """The page sends its last words as it goes and never hears that they arrived; they are not shown as another's version."""
    page, _ = open_demonstration(browser, server, watched)
    page.locator("#text").press_sequentially("Half a thought")
    if leave == "question":
        page.locator("[data-opens=thread]").click()
        page.locator("#ask-body").fill("May I be brief?")
        with page.expect_navigation():
            page.locator("#thread form button").last.click()
    else:
        page.reload()
    page.wait_for_selector("form[data-ready]")
    assert page.locator("#text").input_value() == "Half a thought"
    page.locator("#text").press_sequentially(" and the rest")
    saved(page)
    assert page.locator("dialog.conflict[open]").count() == 0
    assert draft_text(server) == "Half a thought and the rest"


def test_two_tabs_on_one_draft_the_labeler_chooses(browser, server, watched):  # noqa: F811
    page, _ = open_demonstration(browser, server, watched)
    other = page.context.new_page()
    other.goto(page.url)
    other.wait_for_selector("form[data-ready]")
    page.locator("#text").press_sequentially("from the first tab")
    saved(page)
    other.locator("#text").press_sequentially("from the second tab")
    saved(other, "conflict")
    versions = other.locator("dialog[open] .version")
    assert versions.all_inner_texts() == ["from the second tab", "from the first tab"]
    assert draft_text(server) == "from the first tab"
    other.locator("dialog[open] button").nth(1).click()
    saved(other)
    assert other.locator("#text").input_value() == "from the first tab"
    page.locator("#text").press_sequentially(", once more")
    saved(page, "conflict")
    page.locator("dialog[open] button").nth(0).click()
    saved(page)
    assert draft_text(server) == "from the first tab, once more"


def test_handed_in_from_another_tab(browser, server, watched):  # noqa: F811
    page, _ = open_demonstration(browser, server, watched)
    other = page.context.new_page()
    other.goto(page.url)
    other.wait_for_selector("form[data-ready]")
    page.locator("#text").press_sequentially("handed in")
    saved(page)
    page.keyboard.press("Control+Enter")
    page.wait_for_url("**/done")
    other.locator("#text").press_sequentially("written elsewhere")
    other.keyboard.press("Control+Enter")
    other.wait_for_selector("#trouble:visible")
    assert other.locator("#text").input_value() == "written elsewhere"
    with server.site.database.read() as db:
        assert [each.text for each in db.scalars(select(DemonstrationRow))] == ["handed in"]


def test_the_sign_in_ends_while_typing(browser, server, watched):  # noqa: F811
    page, person = open_demonstration(browser, server, watched)
    page.locator("#text").press_sequentially("Before, ")
    saved(page)
    with server.site.database.write() as db:
        db.execute(update(UserSession).values(revoked_at=current_time_ms()))
    page.locator("#text").press_sequentially("and after.")
    page.wait_for_selector("dialog.again[open]", timeout=15000)
    assert page.locator("#again-name").input_value() == person.name
    page.locator("#again-password").fill("a wrong password it is")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog .wrong:not(:empty)")
    page.locator("#again-password").fill(PASSWORD)
    page.keyboard.press("Enter")
    saved(page)
    assert page.locator("#text").input_value() == "Before, and after."
    assert draft_text(server) == "Before, and after."
    page.locator("#submit").click()
    page.wait_for_url("**/done")
    with server.site.database.read() as db:
        assert db.scalars(select(DemonstrationRow)).one().text == "Before, and after."


def test_the_sign_in_ends_before_handing_in(browser, server, watched):  # noqa: F811
    page, _ = open_demonstration(browser, server, watched)
    page.locator("#text").press_sequentially("Right at the end.")
    saved(page)
    with server.site.database.write() as db:
        db.execute(update(UserSession).values(revoked_at=current_time_ms()))
    page.locator("#submit").click()
    page.locator("#again-password").fill(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url("**/done")
    with server.site.database.read() as db:
        assert db.scalars(select(DemonstrationRow)).one().text == "Right at the end."


def test_the_server_dies_and_comes_back_while_typing(browser, server, watched):  # noqa: F811
    page, _ = open_demonstration(browser, server, watched)
    page.locator("#text").press_sequentially("Before, ")
    saved(page)
    server.stop()
    page.locator("#text").press_sequentially("during, ")
    saved(page, "failed")
    assert page.locator("#trouble").is_visible()
    page.locator("#submit").click()
    page.locator("#text").press_sequentially("and after.")
    assert page.locator("#text").input_value() == "Before, during, and after."
    server.start()
    saved(page, patiently=True)
    assert page.locator("#trouble").is_hidden()
    assert draft_text(server) == "Before, during, and after."
    page.locator("#submit").click()
    page.wait_for_url("**/done")
    with server.site.database.read() as db:
        assert db.scalars(select(DemonstrationRow)).one().text == "Before, during, and after."


def test_an_edit_is_a_new_version_and_late_work_is_kept(browser, server, watched):  # noqa: F811
    page, _ = open_demonstration(browser, server, watched)
    with server.site.database.write() as db:
        db.execute(update(Assignment).values(lease_until=current_time_ms() - 1))
    page.locator("#text").fill("first")
    page.locator("#submit").click()
    page.wait_for_url("**/done")
    page.get_by_text("Edit", exact=True).click()
    page.wait_for_selector("form[data-ready]")
    assert page.locator("#text").input_value() == "first"
    page.locator("#text").fill("second")
    page.locator("#submit").click()
    page.wait_for_url("**/done")
    assert "second" in page.locator("#stored").inner_text()
    with server.site.database.read() as db:
        versions = db.scalars(select(Submission).order_by(Submission.version)).all()
        assert [(each.version, each.replaced_at is None) for each in versions] == [(1, False), (2, True)]


def test_a_ranking_in_progress_is_restored(browser, server, watched):  # noqa: F811
    person = add_person(server.site)
    add_ranking(server.site, "Choose.", ["one", "two", "three"])
    context = browser.new_context()
    watched.watch(context, server.url)
    sign_in(context, server, person)
    page = context.new_page()
    page.goto(f"{server.url}/home")
    page.locator("form:has(input[value=rank]) button").click()
    page.wait_for_selector("form[data-ready]")
    page.keyboard.press("5")
    page.locator("button.stage[data-stage=rank]").click()
    for key in "b1a3":
        page.keyboard.press(key)
    saved(page)
    page.reload()
    page.wait_for_selector("form[data-ready]")
    page.locator("button.stage[data-stage=rank]").click()
    assert page.locator("#board .order strong").inner_text() == "B > A"
    assert page.locator("#rated").inner_text() == "1/3"


def test_pasted_share_is_measured(browser, server, watched):  # noqa: F811
    page, _ = open_demonstration(browser, server, watched)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate("navigator.clipboard.writeText('pasted')")
    page.locator("#text").press_sequentially("typed ")
    page.keyboard.press("Control+V")
    page.locator("#submit").click()
    page.wait_for_url("**/done")
    with server.site.database.read() as db:
        assert db.scalars(select(Submission)).one().pasted == 0.5
