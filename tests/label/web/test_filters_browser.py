"""Filters, sorting, pages and bulk actions as an owner works with them, in Chromium.

pytest tests/label/web/test_filters_browser.py
"""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import select
from support import owner as owner_support
from support.browser import browser, serving, sign_in, watched  # noqa: F401
from support.owner import people
from support.site import add_person, make_site

from instructgpt.label.db.models import Person, PromptRow, Task


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Seventy tasks in two batches; two labelers ranked some of the first one, a label answered with yes in one."""
    site = make_site(tmp_path_factory.mktemp("site"))
    first, ada, ben = owner_support.fill(site, tasks=10, name="first"), *people(site, "ada", "ben")
    owner_support.fill(site, tasks=60, name="second", use_cases=("chat", "rewrite"))
    for task in range(4):
        first.rank(task, ada, [1, 2, 3], labels=[{"opinion": task == 2}, {}, {}])
    first.rank(0, ben, [3, 2, 1])
    first.save()
    with site.database.write() as db:
        db.get_one(PromptRow, db.get_one(Task, first.tasks[2]).prompt_id).text = "Wie schreibt man ÜBERALL richtig?"
    with serving(site) as running:
        yield running


def open_page(server, browser, watched, path, **options):  # noqa: F811
    context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
    watched.watch(context, server.url)
    with server.site.database.read() as db:
        olga = db.scalar(select(Person).where(Person.name == "olga"))
    sign_in(context, server, olga or add_person(server.site, "olga", role="owner"))
    page = context.new_page()
    page.goto(server.url + path)
    return page


def url_fields(page):
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def found(page):
    return int(page.locator("p[role=status] strong").inner_text().split()[0])


def test_filters_are_typed_kept_in_the_address_and_cleared(browser, server, watched):  # noqa: F811
    page = open_page(server, browser, watched, "/search/tasks")
    assert found(page) == 70
    page.locator("#batch").select_option(label="first")
    page.locator("#labeler").select_option(label="ada")
    page.locator("#text").fill("überall")
    page.locator("#text").press("Enter")
    page.wait_for_url("**text=**berall**")
    assert found(page) == 1
    assert url_fields(page)["text"] == "überall"
    assert page.locator("#text").input_value() == "überall", "the form shows what was asked for"
    assert page.locator("#labeler option:checked").inner_text() == "ada"
    page.locator("tbody a[href^='/batches/tasks/']").first.click()
    page.wait_for_url("**/batches/tasks/*")
    page.go_back()
    assert (found(page), page.locator("#text").input_value()) == (1, "überall")
    page.get_by_role("link", name="Clear").click()
    page.wait_for_url("**/search/tasks")
    assert found(page) == 70
    page.locator("#use_case").select_option(index=1)
    page.locator(".filters ~ .row .button.primary").click()
    page.wait_for_url("**use_case=chat**")
    assert found(page) == 30


def test_columns_sort_and_pages_keep_the_filter(browser, server, watched):  # noqa: F811
    page = open_page(server, browser, watched, "/search/tasks?kind=rank")
    header = page.locator("th.number a").first
    header.click()
    page.wait_for_url("**sort=-submissions**")
    assert page.locator("th[aria-sort=descending]").count() == 1
    first_row = page.locator("tbody tr").first
    assert first_row.locator("td.number").first.inner_text().startswith("2")
    page.locator("a[rel=next]").click()
    page.wait_for_url("**page=2**")
    assert url_fields(page) == {"kind": "rank", "sort": "-submissions", "page": "2"}
    assert page.locator("#kind").input_value() == "rank"


def test_selected_rows_are_changed_after_a_question(browser, server, watched):  # noqa: F811
    page = open_page(server, browser, watched, "/search/tasks?text=%C3%BCberall")
    page.locator("[data-selects=change]").check()
    boxes = page.locator("input[form=change][name=id]")
    assert [box.is_checked() for box in boxes.all()] == [True]
    page.locator("#action").select_option("exclude")
    page.locator("#change button").click()
    page.wait_for_url("**/change**")
    with server.site.database.read() as db:
        assert not db.query(Task).filter_by(state="withdrawn").count(), "nothing happens before the answer"
    page.locator("main form .button.primary, main form .button.danger").first.click()
    page.wait_for_url("**/search/changes/**")
    with server.site.database.read() as db:
        assert db.query(Task).filter_by(state="withdrawn").count() == 1


def test_filters_fit_a_phone(browser, server, watched):  # noqa: F811
    page = open_page(server, browser, watched, "/search/submissions", has_touch=True)
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for field in page.locator(".filters .field").all():
        box = field.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    page.locator("#label").select_option("opinion")
    page.locator(".filters ~ .row .button.primary").tap()
    page.wait_for_url("**label=opinion**")
    assert found(page) == 1
