"""The report's section on simple mistakes."""

from __future__ import annotations

import html

from instructgpt.cli import run_command as command
from instructgpt.results import ResultRow, write_result_rows


def test_a_panel_a_kind_and_the_headline_of_false_premises(tmp_path):
    shares = {"false_premise": (0.71, 0.33), "hedging": (0.02, 0.04), "constraints": (0.9, 0.62)}
    rows = [
        ResultRow("simple_mistakes", "fails", model, kind, share, share - 0.02, share + 0.02, 100)
        for kind, values in shares.items()
        for model, share in zip(("base", "ppo"), values, strict=True)
    ]
    write_result_rows(tmp_path / "results.json", rows)
    pages = {}
    for language in ("en", "ko"):
        out = tmp_path / f"{language}.html"
        assert command(["report", str(tmp_path / "results.json"), "--out", str(out), "--language", language]) == 0
        pages[language] = html.unescape(out.read_text(encoding="utf-8")).replace("\u00a0", " ")
    section = pages["en"].split('<section id="simple-mistakes"')[1].split("</section>")[0]
    assert "False premise, answers with the mistake: base 71 % [69, 73], PPO 33 % [31, 35]." in section
    for panel in ("False premise", "Hedging", "Several constraints"):
        assert f">{panel}<" in section or f"<title>{panel}" in section or f'aria-label="{panel}' in section
    assert "거짓 전제에서 실수한 답" in pages["ko"]
