"""The playground in a real browser: consent, streaming, stop, ranking by keys, edits, exclusion, a phone, Korean.

The tests wait for selectors: `wait_for_function` evaluates a text again and again, which the pages' policy forbids.
"""

from __future__ import annotations

import pytest
import support.playground
from sqlalchemy import select
from support.browser import browser, serving, watched  # noqa: F401
from support.commands import wait_for
from support.openai_server import openai_server
from support.site import make_site

from instructgpt.label.db.models import PlaygroundAnswer, PlaygroundFeedback, PlaygroundTurn
from instructgpt.label.playground.users import ensure_playground_link
from instructgpt.label.tasks.instructions import publish_default_texts

endpoint = support.playground.endpoint


@pytest.fixture
def playground(tmp_path, endpoint):
    """A running site and the address of its playground."""
    site = make_site(tmp_path, endpoint=endpoint.url)
    with site.database.write() as db:
        publish_default_texts(db)
        token = ensure_playground_link(db).token
    with serving(site) as server:
        yield server, f"{server.url}/playground/join/{token}"


def rows(server, table):
    with server.site.database.read() as db:
        return list(db.scalars(select(table)))


def open_page(browser, watched, playground, **options):  # noqa: F811
    server, url = playground
    context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
    watched.watch(context, server.url)
    page = context.new_page()
    page.goto(url)
    return page


def wait_for_agreement(page):
    """Wait for the page that follows an agreement, with its scripts."""
    page.wait_for_selector("#storage .chip.good")
    page.wait_for_load_state()


def agree(page):
    page.click("#agree")
    wait_for_agreement(page)


def say(page, text):
    page.fill("#message", text)
    page.press("#message", "Control+Enter")
    page.wait_for_selector("article:last-of-type .chip")
    page.wait_for_selector("#send:enabled")
    assert page.input_value("#message") == ""


def test_a_conversation_by_keyboard(browser, watched, playground, endpoint):  # noqa: F811
    server, _ = playground
    page = open_page(browser, watched, playground)
    page.focus("#agree")
    page.keyboard.press("Enter")
    wait_for_agreement(page)
    say(page, "What is a lens?")
    names = [name for name in endpoint.models if name in page.inner_text(".answers").split()]
    assert not names  # texts begin with "policy-says-0", the name alone is nowhere
    for width, is_beside in ((1280, True), (390, False)):
        page.set_viewport_size({"width": width, "height": 900})
        first, second = (page.locator(f".answer[data-position='{position}']").bounding_box() for position in (0, 1))
        assert (first["y"] == second["y"]) == is_beside
        assert (first["x"] == second["x"]) == (not is_beside)
    page.set_viewport_size({"width": 1280, "height": 900})
    for position, rank in enumerate("21"):
        page.focus(f"[data-position='{position}']")
        page.keyboard.press(rank)
    assert page.inner_text(".ranking-row output") == "B > A"
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".ranking-row .chip.good")
    answers = sorted(rows(server, PlaygroundAnswer), key=lambda row: row.position)
    [ranking] = rows(server, PlaygroundFeedback)
    assert ranking.value == {"ranks": {answers[0].id: 2, answers[1].id: 1}, "all_bad": False}
    assert [chip.inner_text() for chip in page.query_selector_all(".answer .chip")] == [row.model for row in answers]
    say(page, "And a mirror?")
    second = rows(server, PlaygroundTurn)[-1]
    assert [turn["content"] for turn in second.messages] == ["What is a lens?", answers[1].text, "And a mirror?"]
    page.focus("article:last-of-type [data-position='0']")
    page.keyboard.press("b")
    page.wait_for_selector("article:last-of-type .ranking-row .chip.good")
    assert rows(server, PlaygroundFeedback)[-1].value["all_bad"]
    page.reload()
    assert len(page.query_selector_all("article")) == 2
    assert page.query_selector("#consent") is None
    page.close()


def test_edit_report_thumb_and_exclusion(browser, watched, playground):  # noqa: F811
    server, _ = playground
    page = open_page(browser, watched, playground)
    agree(page)
    say(page, "One")
    page.click("[data-position='0'] >> text=Edit")
    page.fill("#edit-text", "My own words")
    page.click("text=Save")
    page.wait_for_selector("text=Edited by you.")
    page.click("[data-position='1'] >> text=Good")
    page.wait_for_selector("[data-position='1'] [aria-pressed=true]")
    page.click("text=Report")
    page.fill("#report-text", "odd")
    page.click("text=Send the report")
    page.wait_for_selector("text=a person looks at it first")
    assert sorted(row.kind for row in rows(server, PlaygroundFeedback)) == ["edit", "report", "thumb"]
    say(page, "Two")
    assert [turn["content"] for turn in rows(server, PlaygroundTurn)[-1].messages] == ["One", "My own words", "Two"]
    page.click("article:first-of-type .exclude")
    page.wait_for_selector(".exclude", state="detached")
    assert {row.state for row in rows(server, PlaygroundTurn)} == {"erased"}
    say(page, "Three")
    assert "Start a new conversation" in page.inner_text("article:last-of-type .said")
    page.click("#new")
    say(page, "Four")
    assert rows(server, PlaygroundTurn)[-1].state == "kept"
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#erase button")
    page.wait_for_selector("#consent")
    page.wait_for_load_state()
    assert page.query_selector_all("article") == []
    assert {row.state for row in rows(server, PlaygroundTurn)} == {"erased"}
    page.close()


HOSTILE = """# A title

| a | b |
|---|---|
| 1 | 2 |

```python
print("x" * 3)
```

<img src=x onerror="document.title='attacked'"><script>document.title="attacked"</script>
[click](javascript:document.title='attacked') ![picture](https://example.org/a.png) $x^2$"""


def test_answers_become_markdown_and_stay_harmless(browser, watched, tmp_path):  # noqa: F811
    with openai_server(fixed_answer=HOSTILE) as hostile:
        site = make_site(tmp_path, endpoint=hostile.url)
        with site.database.write() as db:
            publish_default_texts(db)
            token = ensure_playground_link(db).token
        with serving(site) as server:
            page = open_page(browser, watched, (server, f"{server.url}/playground/join/{token}"))
            agree(page)
            say(page, "Show me")
            page.reload()  # as it is stored in the tab
            page.wait_for_selector(".answer-text h1:has-text('A title')")
            answer = page.query_selector("[data-position='1'] .answer-text")
            for tag in ("table td", "pre code span", "math"):
                assert answer.query_selector(tag) is not None, tag
            for tag in ("img", "script", "a", "[onerror]"):
                assert answer.query_selector(tag) is None, tag
            assert "<img src=x onerror" in answer.inner_text()
            assert "attacked" not in page.title()
            page.click("[data-position='0'] >> text=Edit")
            assert page.input_value("#edit-text") == HOSTILE  # its source, not what is drawn
            page.fill("#edit-text", "**bold** <b>not</b>")
            page.click("text=Save")
            page.wait_for_selector("[data-position='0'] .answer-text strong:has-text('bold')")
            assert "<b>not</b>" in page.inner_text("[data-position='0'] .answer-text")
            page.close()


def test_stop_keeps_what_came_and_frees_the_endpoint(browser, watched, tmp_path):  # noqa: F811
    with openai_server(words=400, delay_s=0.05) as slow:
        site = make_site(tmp_path, endpoint=slow.url)
        with site.database.write() as db:
            publish_default_texts(db)
            token = ensure_playground_link(db).token
        with serving(site) as server:
            page = open_page(browser, watched, (server, f"{server.url}/playground/join/{token}"))
            agree(page)
            page.fill("#message", "A long story")
            page.click("#send")
            page.wait_for_selector(".answer-text:has-text('says-3')")
            page.keyboard.press("Escape")
            page.wait_for_selector("article .chip.good:has-text('Kept')")
            answers = sorted(rows(server, PlaygroundAnswer), key=lambda row: row.position)
            shown = [text.inner_text().strip() for text in page.query_selector_all(".answer-text")]
            assert [row.text.strip() for row in answers] == shown
            assert {row.finish for row in answers} == {"stopped"}
            wait_for(lambda: slow.cancelled == 2)
            page.close()


def test_without_agreement_on_a_phone_in_korean(browser, watched, playground):  # noqa: F811
    server, _ = playground
    phone = {"viewport": {"width": 390, "height": 800}, "locale": "ko-KR", "color_scheme": "dark"}
    page = open_page(browser, watched, playground, has_touch=True, is_mobile=True, **phone)
    assert "플레이그라운드" in page.inner_text("h1")
    page.tap("#decline")
    page.fill("#message", "렌즈가 뭐예요?")
    page.tap("#send")
    page.wait_for_selector("article .chip:has-text('보관하지 않음')")
    assert page.query_selector(".rank-choice") is None
    page.tap("text=어느 모델이 썼는지 보기")
    assert len(page.query_selector_all(".answer .chip")) == 2
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    small = page.evaluate(
        "[...document.querySelectorAll('main button, main select, main summary')]"
        ".filter((part) => part.offsetHeight && part.offsetHeight < 32).map((part) => part.textContent)"
    )
    assert small == []
    assert rows(server, PlaygroundTurn) == []
    page.close()


def test_the_page_is_accessible(browser, watched, playground):  # noqa: F811
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = open_page(browser, watched, playground, reduced_motion="reduce")  # no color is measured in a transition
    agree(page)
    say(page, "What is a lens?")
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        violations = axe.Axe().run(page).response["violations"]
        assert not [(row["id"], row["nodes"][0]["html"]) for row in violations]
    page.close()


def test_a_broken_connection_loses_no_message(browser, watched, playground):  # noqa: F811
    server, _ = playground
    page = open_page(browser, watched, playground)
    agree(page)
    page.route("**/playground/turns", lambda route: route.abort())
    page.fill("#message", "Do not lose me")
    page.click("#send")
    page.wait_for_selector("#trouble:not([hidden])")
    assert page.input_value("#message") == "Do not lose me"
    page.unroute("**/playground/turns")
    page.reload()
    assert page.input_value("#message") == "Do not lose me"
    page.click("#send")
    page.wait_for_selector("article .chip.good:has-text('Kept')")
    assert len(rows(server, PlaygroundTurn)) == 1
    page.close()
