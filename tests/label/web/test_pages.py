"""Every page in a real browser: no policy violation, foreign request or model name; accessible (axe), light and dark.

Run: python -m pytest tests/label/web/test_pages.py
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from sqlalchemy import select, update
from support import owner as owner_support
from support.browser import add_batch, add_ranking, browser, server, sign_in, skip_without, watched  # noqa: F401
from support.owner import people
from support.site import add_person

from instructgpt.label.db.models import Assignment, Batch, PromptRow, RankingItem, Skip
from instructgpt.label.safe_text import MAX_INITIAL_LENGTH
from instructgpt.label.tasks.batches import mark_batch_closed

AXE = "axe-core@4.10.3"
SECRETS = ("secret-model", "hidden-batch", '"gold"', "is_repeat", "sampling")
HOSTILE = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>",
    "right\u202eto left\u202c, zero\u200bwidth, NUL \x00 and a [link](javascript:window.hacked=1) "
    "![i](https://elsewhere.example/i.png)",
    "long " + "x" * 200_000,
    "</textarea></script><svg onload=window.hacked=1> {{ 7 * 7 }}",
    "# Heading\n\n- one\n- **two**\n\n<b>raw</b> `code` <https://elsewhere.example>",
    "안녕하세요. 저는 도움이 되고 싶습니다.",
    "مرحبا، كيف يمكنني المساعدة؟",
)


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, fetched once into a cache folder by the registry's own client."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "instructgpt-tests"
    packed = folder / f"{AXE.replace('@', '-')}.tgz"
    if not packed.exists():
        if shutil.which("npm") is None:
            skip_without("axe-core: there is no npm to fetch it with")
        folder.mkdir(parents=True, exist_ok=True)
        got = subprocess.run(
            ["npm", "pack", AXE, "--pack-destination", folder, "--silent"], cwd=folder, capture_output=True, timeout=60
        )
        if got.returncode != 0 or not packed.exists():
            skip_without("axe-core could not be fetched")
    with tarfile.open(packed) as archive:
        inside = archive.extractfile("package/axe.min.js")
        assert inside is not None
        return inside.read().decode()


def faults(page, axe: str, *rules: str) -> list[str]:
    """Serious and critical faults of a page, each with its rule and place. `rules`: only these."""
    page.evaluate(axe)
    options = {"runOnly": {"type": "rule", "values": list(rules)}} if rules else {}
    found = page.evaluate("options => axe.run(document, options)", options)
    return [
        f"{page.url} {fault['id']}: {node['target']} {node['failureSummary'][:200]}"
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"][:3]
    ]


def fill(server) -> None:  # noqa: F811
    """Work of every kind, with texts that would like to do harm."""
    add_ranking(server.site, "Greet me in three languages.", list(HOSTILE), name="hidden-batch-rank")
    add_batch(server.site, "demonstrate", ["Explain <b>why</b> the sky is blue."], name="hidden-batch-demonstrate")
    add_batch(server.site, "review", ["Who is Anna Smith, 12 High Street?"], name="hidden-batch-review")
    add_batch(server.site, "write", [], name="hidden-batch-write", briefs=[{"form": "few_shot", "use_case": "rewrite"}])


def listening(context, url: str) -> list[str]:
    """Secrets in anything the server sends to this browser, found while it is used."""
    told: list[str] = []

    def look(answer) -> None:
        if not answer.url.startswith(url) or "/static/" in answer.url:
            return
        said = str(answer.headers) + ("" if 300 <= answer.status < 400 else answer.text())
        told.extend(f"{answer.url}: {secret}" for secret in SECRETS if secret in said)

    context.on("response", look)
    return told


def begin(page, server, kind: str) -> None:  # noqa: F811
    page.goto(f"{server.url}/home")
    page.locator(f"form:has(input[value={kind}]) button").click()
    page.wait_for_selector("form[data-ready]")


def hand_in_everything(page, server):  # noqa: F811
    """A labeler's whole day. Yields after each new page."""
    page.goto(f"{server.url}/home")
    yield
    begin(page, server, "rank")
    yield
    page.keyboard.press("6")
    page.keyboard.press("x")
    yield
    page.locator("button.stage[data-stage=rank]").click()
    for key in "a1b2c2d3e3":
        page.keyboard.press(key)
    page.keyboard.press("f")
    yield
    page.keyboard.press("Shift+C")
    yield
    page.keyboard.press("Escape")
    for key in "f4g4":
        page.keyboard.press(key)
    page.locator("#submit").click()
    page.wait_for_url("**/done")
    yield
    begin(page, server, "demonstrate")
    page.locator("#text").fill("Blue light is scattered more.")
    yield
    page.locator("[data-opens=thread]").click()
    page.locator("#ask-body").fill("May I use a metaphor?")
    yield
    page.locator("#thread button:has-text('')").last.click()
    page.wait_for_selector("form[data-ready]")
    page.locator("#submit").click()
    page.wait_for_url("**/done")
    begin(page, server, "review")
    page.locator(".ask").first.locator("input[value=yes]").check(force=True)
    page.locator("#rejected").select_option("use")
    yield
    page.locator("#submit").click()
    page.wait_for_url("**/done")
    yield
    begin(page, server, "write")
    page.locator("#text").fill("Rewrite formally.")
    page.locator("[name=example_prompt]").first.fill("hey")
    page.locator("[name=example_completion]").first.fill("Good day")
    yield
    page.locator("#submit").click()
    page.wait_for_url("**/done")
    yield
    page.goto(f"{server.url}/history")
    yield


@pytest.mark.parametrize(("language", "scheme"), [("en", "light"), ("ko", "dark")])
def test_labeler_pages_are_accessible(language, scheme, browser, server, watched, axe):  # noqa: F811
    fill(server)
    context = browser.new_context(color_scheme=scheme, reduced_motion="reduce", viewport={"width": 1366, "height": 860})
    watched.watch(context, server.url)
    told = listening(context, server.url)
    sign_in(context, server, add_person(server.site, language=language))
    page = context.new_page()
    wrong: list[str] = []
    for _ in hand_in_everything(page, server):
        wrong += faults(page, axe, *(["color-contrast"] if scheme == "dark" else []))
        assert page.evaluate("window.hacked") is None
        assert page.locator("html").get_attribute("lang") == language
    assert not wrong
    assert not told


def ranked(server) -> None:  # noqa: F811
    """Rankings on which two labelers disagree, and an evaluation that is closed."""
    crowd = people(server.site, "ben", "cy")
    for name, purpose in (("round", "training"), ("blind", "evaluation")):
        filled = owner_support.fill(server.site, tasks=4, name=name, purpose=purpose, use_cases=("chat", "open_qa"))
        for task in range(4):
            for person, ranks in zip(crowd, ([1, 2, 3], [3, 1, 2]), strict=True):
                filled.rank(task, person, ranks, ratings=[5, 4, 3], labels=[{"opinion": task % 2 == 0}, {}, {}])
        filled.save()
    with server.site.database.write() as db:
        mark_batch_closed(db, db.get(Batch, filled.batch))


UNSEEN = """Array.from(document.querySelectorAll("main :is(select, textarea, input:not([type=hidden], .unseen))"),
    field => field).filter(field => !field.closest("details") && !field.checkVisibility()).map(field => field.name)"""
CUT = """Array.from(document.querySelectorAll("svg.chart"),
    chart => Math.ceil(chart.getBoundingClientRect().right)).filter(right => right > document.documentElement.clientWidth)"""
LINKS = "Array.from(document.querySelectorAll('main a[href], nav a[href]'), a => a.href)"


@pytest.mark.parametrize("role", ["owner", "labeler"])
def test_all_linked_pages_load_and_are_accessible(role, browser, server, watched, axe):  # noqa: F811
    """A crawl in light for the whole of axe, then in dark for contrast; on a phone nothing is wider than the page."""
    fill(server)
    if role == "owner":
        ranked(server)
    context = browser.new_context(
        color_scheme="light", reduced_motion="reduce", viewport={"width": 1280, "height": 900}
    )
    watched.watch(context, server.url)
    sign_in(context, server, add_person(server.site, "olga", role=role))
    page = context.new_page()
    waiting, seen, wrong = [f"{server.url}/home", f"{server.url}/account"], {}, []
    while waiting:
        address = waiting.pop().split("#")[0]
        shape = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|\?.*", "", address)
        if (
            shape in seen
            or not address.startswith(server.url)
            or address.endswith((".csv", ".json", ".jsonl", ".gz", ".parquet"))
        ):
            continue
        if context.request.get(address).headers.get("content-disposition"):
            continue
        seen[shape] = page.goto(address).status
        wrong += faults(page, axe)
        if not address.endswith("/batches/new"):  # there the kind of work decides which fields are in sight
            wrong += [f"{address}: the field {name} is out of sight" for name in page.evaluate(UNSEEN)]
        page.emulate_media(color_scheme="dark")
        wrong += faults(page, axe, "color-contrast")
        page.emulate_media(color_scheme="light")
        page.set_viewport_size({"width": 390, "height": 844})
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        wrong += [f"{address}: {wide} pixels wider than a phone"] if wide > 0 else []
        wrong += [f"{address}: a chart is cut off on a phone"] if page.evaluate(CUT) else []
        page.set_viewport_size({"width": 1280, "height": 900})
        waiting += page.evaluate(LINKS)
    assert not {shape: status for shape, status in seen.items() if status != 200}
    assert not wrong
    assert len(seen) >= 4
    if role == "owner":
        assert {"/results/", "/quality/labelers/", "/adjudication/"} <= {
            shape.removeprefix(server.url) for shape in seen
        }


def test_identical_completions_are_shown_once(browser, server, watched):  # noqa: F811
    add_ranking(server.site, "Say hello.", ["Hello!", "Good day.", "Hello!", "Hello!  "])
    context = browser.new_context()
    watched.watch(context, server.url)
    sign_in(context, server, add_person(server.site))
    page = context.new_page()
    begin(page, server, "rank")
    assert sorted(text.strip() for text in page.locator(".body .plain").all_inner_texts()) == ["Good day.", "Hello!"]


def test_board_does_not_render_long_lines(browser, server, watched):  # noqa: F811
    add_ranking(server.site, "Say x.", ["x" * 200_000, "y" * 199_000 + " end", "short"])
    context = browser.new_context()
    watched.watch(context, server.url)
    sign_in(context, server, add_person(server.site))
    page = context.new_page()
    begin(page, server, "rank")
    page.locator("button.stage[data-stage=rank]").click()
    for key in "a1b2c2":
        page.keyboard.press(key)
    assert page.locator("#board .order strong").inner_text() == "A > B = C"
    assert page.evaluate("document.getElementById('board').textContent.length") < 2_000, "cards have a preview"
    rest = page.locator("details.rest").first
    assert not rest.locator("div").is_visible()
    assert page.evaluate("document.querySelector('.body .plain').textContent.length") <= MAX_INITIAL_LENGTH


def test_tasks_work_without_scripts(browser, server, watched):  # noqa: F811
    fill(server)
    context = browser.new_context(java_script_enabled=False)
    watched.watch(context, server.url)
    sign_in(context, server, add_person(server.site))
    page = context.new_page()
    page.goto(f"{server.url}/home")
    page.locator("form:has(input[value=rank]) button").click()
    page.locator("input[name^='rating:'][value='5']").first.check(force=True)
    places = page.locator("select[name^='tier:']")
    for at in range(6):
        places.nth(at).select_option(str(1 + at // 2))
    page.locator("#submit").click()
    assert page.locator("main [role=alert]:visible").count() == 1
    assert places.nth(5).input_value() == "3"
    assert page.locator("input[name^='rating:'][value='5']").first.is_checked()
    places.nth(6).select_option("9" if places.nth(6).locator("option").count() > 9 else "7")
    page.locator("#submit").click()
    assert page.url.endswith("/done")
    assert page.locator("#stored .order").inner_text() == "A = B > C = D > E = F > G"
    with server.site.database.read() as db:
        assert sorted(db.scalars(select(RankingItem.rank))) == [1, 1, 2, 2, 3, 3, 4]
    page.locator("#undo").click()
    assert places.nth(0).input_value() == "1"


def test_sensitive_content_is_behind_a_gate(browser, server, watched, axe):  # noqa: F811
    add_batch(server.site, "demonstrate", ["Something sensitive."])
    with server.site.database.write() as db:
        db.execute(update(PromptRow).values(sensitive=True))
    context = browser.new_context()
    watched.watch(context, server.url)
    sign_in(context, server, add_person(server.site))
    page = context.new_page()
    begin(page, server, "demonstrate")
    assert page.locator(".read").evaluate("each => each.inert && getComputedStyle(each).filter.includes('blur')")
    assert not faults(page, axe)
    page.locator("#show").click()
    assert not page.locator(".read").evaluate("each => each.inert || getComputedStyle(each).filter.includes('blur')")
    page.reload()
    page.locator(".gate [data-opens=skip]").click()
    assert page.locator("#skip input[value=sensitive]").is_checked()
    page.locator("#skip form button").click()
    page.wait_for_url("**/done")
    with server.site.database.read() as db:
        assert db.scalars(select(Skip)).one().reason == "sensitive"
        assert db.scalars(select(Assignment)).one().state == "skipped"
    page.locator("#undo").click()
    page.wait_for_selector("form[data-ready]")


def test_language_and_theme_follow_the_choice(browser, server, watched):  # noqa: F811
    context = browser.new_context(color_scheme="light", reduced_motion="reduce")
    watched.watch(context, server.url)
    sign_in(context, server, add_person(server.site))
    page = context.new_page()
    page.goto(f"{server.url}/history")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("button[name=theme][value=dark]").click()
    assert page.url == f"{server.url}/history"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    page.locator("button[name=language][value=ko]").click()
    assert page.locator("html").get_attribute("lang") == "ko"
    assert page.locator("h1").inner_text() == "작업 내역"
