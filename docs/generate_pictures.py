"""Write the README's pictures, in light and dark: the report of a run, and the ranking board of a site of its own; and
the figures of the run that the pages show (generate_figures.py).

PYTHONPATH=src:tests python docs/generate_pictures.py runs/demo
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import generate_figures
from PIL import Image
from support.browser import LETTERS, add_ranking, chromium, serving, sign_in
from support.site import add_person, make_site

from instructgpt.report.page import write_report

FIGURES = Path(__file__).parent / "figures"
SCHEMES = ("light", "dark")
PALETTE_COLORS = 96
REPORT_SIZE = {"width": 860, "height": 720}
BOARD_SIZE = {"width": 1180, "height": 704}
PROMPT = "What does an otter eat? Answer in one or two sentences."
COMPLETIONS = (
    "The otter lives by the river and eats fish.",
    "Otters eat fish, mussels and crabs, which they catch in the water.",
    "The otter eats fish.",
    "I have no comment.",
    "An otter eats grass and leaves, as cows do.",
    "What do cats eat? What do dogs eat? What do cows eat?",
)
TIERS = {COMPLETIONS[0]: 1, COMPLETIONS[1]: 1, COMPLETIONS[2]: 2, COMPLETIONS[3]: 3}


def draw_report(browser: Any, run: Path, figures: Path) -> None:
    """Draw the section *Preference* of a run's report."""
    with tempfile.TemporaryDirectory() as folder:
        page_path = write_report(run, Path(folder) / "report.html")
        for scheme in SCHEMES:
            page = browser.new_page(viewport=REPORT_SIZE, color_scheme=scheme)
            page.goto(page_path.as_uri())
            page.add_style_tag(content="html { scroll-behavior: auto } #preference { border: 0; padding-top: 1rem }")
            box = page.locator("#preference").bounding_box()
            figure = page.locator("#preference figure").first.bounding_box()
            height = min(figure["y"] + figure["height"] - box["y"] + 12, box["height"])
            clip = {"x": 0, "y": box["y"], "width": REPORT_SIZE["width"], "height": height}
            _save(page.screenshot(clip=clip, full_page=True), figures / f"report-{scheme}.png")
            page.close()


def draw_board(browser: Any, figures: Path) -> None:
    """Draw a ranking of six completions, four of them placed."""
    with tempfile.TemporaryDirectory() as folder, serving(make_site(Path(folder))) as server:
        person = add_person(server.site)
        add_ranking(server.site, PROMPT, list(COMPLETIONS))
        context = browser.new_context(viewport=BOARD_SIZE, locale="en")
        sign_in(context, server, person)
        page = context.new_page()
        page.goto(f"{server.url}/home")
        page.locator("form:has(input[value=rank]) button").click()
        page.wait_for_selector("form[data-ready]")
        page.locator("button.stage[data-stage=rank]").click()
        _place_completions(page)
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)
            _save(page.screenshot(animations="disabled"), figures / f"ranking_board-{scheme}.png")
        context.close()


def _save(screenshot: bytes, path: Path) -> None:
    """Write a PNG with a palette, a third of the size."""
    Image.open(io.BytesIO(screenshot)).convert("RGB").quantize(PALETTE_COLORS).save(path, optimize=True)


def _place_completions(page: Any) -> None:
    """Place completions by keys; which letter a completion has is drawn for each labeler."""
    texts = {
        letter: page.locator(".card", has=page.locator(f".letter:text-is('{letter}')")).first for letter in LETTERS[:6]
    }
    for completion, tier in TIERS.items():
        letter = next(letter for letter, card in texts.items() if completion[:12] in card.inner_text())
        page.keyboard.press(letter.lower())
        page.keyboard.press(str(tier))


def main(run: Path, figures: Path = FIGURES) -> None:
    generate_figures.main(run, figures)
    with chromium() as browser:
        draw_report(browser, run, figures)
        draw_board(browser, figures)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
