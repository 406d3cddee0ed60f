"""Drafts in a real browser: two tabs, an expired session, a stopped server, a closed page; no text is lost.

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
    if state == "conflict":
        page.wait_for_selector("dialog.conflict[open]")


def draft_text(server) -> str | None:  # noqa: F811
    with server.site.database.read() as db:
        draft = db.scalar(select(Draft))
        return draft.payload["text"] if draft else None


def test_draft_is_saved_and_restored_after_reload(browser, server, watched):  # noqa: F811
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


def test_closing_the_page_saves_the_draft(browser, server, watched):  # noqa: F811
    page, _ = open_demonstration(browser, server, watched)
    page.locator("#text").press_sequentially("Half a thought")
    address, context = page.url, page.context
    page.close()
    other = context.new_page()
    other.goto(address)
    other.wait_for_selector("form[data-ready]")
    assert other.locator("#text").input_value() == "Half a thought"


@pytest.mark.parametrize("leave", ["question", "reload"])
def test_leaving_the_page_is_no_conflict_with_own_draft(leave, browser, server, watched):  # noqa: F811
    """A closing page sends its last fields and never learns that they arrived: they are not shown as a conflict."""
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


def test_conflict_between_two_tabs_is_resolved_by_the_labeler(browser, server, watched):  # noqa: F811
    page, _ = open_demonstration(browser, server, watched)
    other = page.context.new_page()
    other.goto(page.url)
    other.wait_for_selector("form[data-ready]")
    page.locator("#text").press_sequentially("from the first tab")
    saved(page)
    other.locator("#text").press_sequentially("from the second tab")
    saved(other, "conflict")
    other.wait_for_selector("dialog[open] .version")
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


def test_late_submission_from_another_tab_is_refused(browser, server, watched):  # noqa: F811
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


def test_session_expires_while_typing(browser, server, watched):  # noqa: F811
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


def test_session_expires_before_submitting(browser, server, watched):  # noqa: F811
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


def test_server_restarts_while_typing(browser, server, watched):  # noqa: F811
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


def test_edit_makes_a_new_version_after_the_lease_ended(browser, server, watched):  # noqa: F811
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


def open_kind(browser, server, watched, kind: str):  # noqa: F811
    """Two pages on one task, each in a tab."""
    context = browser.new_context()
    watched.watch(context, server.url)
    sign_in(context, server, add_person(server.site))
    first, second = context.new_page(), context.new_page()
    first.goto(f"{server.url}/home")
    first.locator(f"form:has(input[value={kind}]) button").click()
    first.wait_for_selector("form[data-ready]")
    second.goto(first.url)
    second.wait_for_selector("form[data-ready]")
    return first, second


def test_text_typed_while_a_conflict_is_looked_up_is_kept(browser, server, watched):  # noqa: F811
    page, _ = open_demonstration(browser, server, watched)
    other = page.context.new_page()
    other.goto(page.url)
    other.wait_for_selector("form[data-ready]")
    page.locator("#text").fill("from the first tab")
    saved(page)
    pending = []
    other.route("**/tasks/*?edit=true", lambda route: pending.append(route))
    other.locator("#text").fill("from the second tab")
    with other.expect_request("**/tasks/*?edit=true"):
        other.evaluate("dispatchEvent(new Event('pagehide'))")
    other.locator("#text").press_sequentially(" and more")
    pending[0].continue_()
    other.wait_for_selector("dialog.conflict[open]")
    assert other.locator("dialog[open] .version").first.inner_text() == "from the second tab and more"
    other.locator("dialog[open] button").nth(0).click()
    other.wait_for_selector("#saved[data-state=saved]")
    assert other.locator("#text").input_value() == draft_text(server) == "from the second tab and more"


def test_conflict_between_rankings_shows_both_and_keeps_one(browser, server, watched):  # noqa: F811
    add_ranking(server.site, "Choose.", ["one", "two", "three"])
    first, second = open_kind(browser, server, watched, "rank")
    for page, keys in ((first, "a1b2c2"), (second, "c1b3")):
        page.keyboard.press("5")
        page.locator("button.stage[data-stage=rank]").click()
        for key in keys:
            page.keyboard.press(key)
        saved(page, "saved" if page is first else "conflict")
    versions = second.locator("dialog[open] .version").all_inner_texts()
    assert versions == ["C > B\nA: 5", "A > B = C\nA: 5"]
    second.locator("dialog[open] button").nth(1).click()
    saved(second)
    assert second.locator("#board .order strong").inner_text() == "A > B = C"
    second.keyboard.press("Control+Enter")
    second.wait_for_url("**/done")
    assert "A > B = C" in second.locator("#stored .order").inner_text()


def test_versions_are_told_apart_by_every_answer(browser, server, watched):  # noqa: F811
    """The same order and ratings, other labels, confidence and mark: only what differs is listed, in words."""
    add_ranking(server.site, "Choose.", ["one", "two"])
    first, second = open_kind(browser, server, watched, "rank")
    for page, opinion, confidence in ((first, "yes", "8"), (second, "no", "Home")):
        page.keyboard.press("5")
        section = page.locator("section.rate[data-letter=A]")
        section.locator(f".ask[data-name=opinion] input[value={opinion}]").check()
        section.locator(".ask[data-name=hallucination] input[value=na]").check()
        page.locator("button.stage[data-stage=rank]").click()
        page.keyboard.press("a")
        page.keyboard.press("1")
        page.locator("#confidence").press(confidence)
        if page is second:
            page.locator("[name=none_acceptable]").check()
        saved(page, "saved" if page is first else "conflict")
    question = second.locator("section.rate[data-letter=A] .ask[data-name=opinion] > span").first
    short = question.get_attribute("data-short")
    mark = second.locator("label:has([name=none_acceptable])").inner_text()
    surety = second.locator("label[for=confidence]").inner_text()
    own, other = second.locator("dialog[open] .version").all_inner_texts()
    assert own.splitlines() == ["A", "A: 5", f"A · {short}: No", f"{mark}: ✓", f"{surety}: –"]
    assert other.splitlines() == ["A", "A: 5", f"A · {short}: Yes", f"{mark}: –", f"{surety}: 8"]


def test_versions_of_a_review_are_told_apart(browser, server, watched):  # noqa: F811
    add_batch(server.site, "review", ["Look at this."])
    first, second = open_kind(browser, server, watched, "review")
    for page, use_case, personal in ((first, "r", "yes"), (second, "c", "no")):
        page.locator("#use_case").press(use_case)
        page.locator(f"[name=personal_data][value={personal}]").check()
        page.locator("[name=sensitive][value=no]").check()
        saved(page, "saved" if page is first else "conflict")
    own, other = second.locator("dialog[open] .version").all_inner_texts()
    assert [line.rsplit(": ", 1)[1] for line in own.splitlines()] == ["Chat", "No"]
    assert [line.rsplit(": ", 1)[1] for line in other.splitlines()] == ["Rewrite", "Yes"]


def test_conflict_between_prompts_restores_examples_and_line_breaks(browser, server, watched):  # noqa: F811
    add_batch(server.site, "write", [], briefs=[{"form": "few_shot", "use_case": "rewrite"}])
    first, second = open_kind(browser, server, watched, "write")
    first.locator("#text").fill("\n\nTranslate.\n")
    first.locator("#use_case").select_option("")
    for number in range(3):
        first.locator(f"#ask-{number + 1}").fill(f"\nask {number}")
        first.locator(f"#get-{number + 1}").fill(f"get {number}" if number else "")
    first.locator("#more").click()
    first.wait_for_selector("#ask-4:focus")
    first.keyboard.type("ask 3")
    saved(first)
    second.locator("#text").fill("Something else")
    saved(second, "conflict")
    second.locator("dialog[open] button").nth(1).click()
    saved(second)
    first.reload()
    first.wait_for_selector("form[data-ready]")
    for page in (first, second):
        assert page.locator("#text").input_value() == "\n\nTranslate.\n"
        assert page.locator("#use_case").input_value() == "", "a draft without a use case is not given the brief's"
        prompts = [field.input_value() for field in page.locator("[name=example_prompt]").all()]
        assert prompts == ["\nask 0", "\nask 1", "\nask 2", "ask 3"]
        completions = [field.input_value() for field in page.locator("[name=example_completion]").all()]
        assert completions == ["", "get 1", "get 2", ""]


def test_local_copy_of_an_older_revision_is_a_conflict(browser, server, watched):  # noqa: F811
    page, _ = open_demonstration(browser, server, watched)
    page.locator("#text").press_sequentially("on the server")
    saved(page)
    assignment = page.locator("#task").get_attribute("data-assignment")
    local = '{"rev": 0, "timeMs": 1, "fields": [["active_ms", "5"], ["text", "only in this browser"]]}'
    page.evaluate("([id, copy]) => localStorage.setItem(`draft:${id}:old`, copy)", [assignment, local])
    page.reload()
    page.wait_for_selector("dialog.conflict[open]")
    versions = page.locator("dialog[open] .version").all_inner_texts()
    assert versions == ["only in this browser", "on the server"]
    page.locator("dialog[open] button").nth(0).click()
    saved(page)
    assert draft_text(server) == "only in this browser"
    assert page.evaluate("localStorage.length") == 0


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
