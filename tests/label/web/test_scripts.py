"""Functions of the scripts in a real browser, compared with independent implementations.

Run: python -m pytest tests/label/web/test_scripts.py
"""

from __future__ import annotations

from random import Random

import pytest
from support.browser import browser, server, watched  # noqa: F401


@pytest.fixture
def page(browser, server, watched):  # noqa: F811
    """Any page of the site, from which its modules can be imported."""
    context = browser.new_context()
    watched.watch(context, server.url)
    opened = context.new_page()
    opened.goto(f"{server.url}/sign-in")
    return opened


def test_same_work_ignores_metadata_and_blank_fields(page):
    """A draft that comes back as a page: blank fields, metadata and the order of fields do not count, words do."""
    mine = [
        ["key", "a"],
        ["active_ms", "5"],
        ["pasted", "0.5"],
        ["text", "\nblue"],
        ["note", ""],
        ["use_case", "other"],
    ]
    base = [["use_case", "other"], ["pasted", "1.0"], ["text", "\nblue"], ["key", "b"]]
    examples = [["example_prompt", "q"], ["example_completion", "a"], ["example_prompt", " "]]
    cases = [
        (mine, base, True),
        (mine, [["text", "blue"], ["use_case", "other"]], False),
        (mine, [*base, ["note", "x"]], False),
        ([["form", "plain"], *examples], [["form", "plain"]], True),
        ([["form", "few_shot"], *examples], [["form", "few_shot"]], False),
        ([["form", "few_shot"], *examples], [*examples[:2], ["form", "few_shot"]], True),
        ([["tier:b", "1"], ["tier:a", "2"]], [["tier:a", "1"], ["tier:b", "2"]], False),
    ]
    found = page.evaluate(
        "async cases => { const {isSameWork} = await import('/static/form.js'); return cases.map(c => isSameWork(c[0], "
        "c[1])); }",
        cases,
    )
    assert found == [expected for *_, expected in cases]


def longest_common(one: list[str], other: list[str]) -> int:
    """Length of a longest common subsequence, by the table of the definition."""
    row = [0] * (len(other) + 1)
    for left in one:
        above, row = row, [0]
        for at, right in enumerate(other):
            row.append(above[at] + 1 if left == right else max(row[at], above[at + 1]))
    return row[-1]


def test_word_diff_finds_a_longest_common_subsequence(page):
    rng = Random(5)
    cases = [[[rng.choice("abc") for _ in range(rng.randint(0, 12))] for _ in range(2)] for _ in range(150)]
    for (one, other), pairs in zip(
        cases,
        page.evaluate(
            "async cases => { const {longestCommonSubsequence: lcs} = await import('/static/diff.js'); return "
            "cases.map(c => lcs(...c)); }",
            cases,
        ),
        strict=True,
    ):
        assert len(pairs) == longest_common(one, other)
        assert all(one[left] == other[right] for left, right in pairs)
        assert pairs == sorted(pairs)
        assert len({left for left, _ in pairs}) == len({right for _, right in pairs}) == len(pairs)


def test_word_diff_runs_join_to_both_texts(page):
    texts = ["a b  c\n\nd", "a c d e", "", "같은 말 다른 말", "違う文です", "x " * 3000]
    for left in texts:
        for right in texts:
            found = page.evaluate("async both => (await import('/static/diff.js')).diffTexts(...both)", [left, right])
            if found is not None:
                assert "".join(run["text"] for run in found["left"]) == left
                assert "".join(run["text"] for run in found["right"]) == right


def test_board_moves_keep_every_card_once_and_undo_restores(page):
    wrong = page.evaluate("""async () => {
        const board = await import('/static/board.js'), wrong = [];
        let seed = 7;
        const random = (n) => (seed = (seed * 48271) % 2147483647) % n;
        const cards = ['a', 'b', 'c', 'd', 'e'];
        for (let run = 0; run < 200; run++) {
            let state = board.createBoard(cards);
            const states = [];
            for (let step = 0; step < 30; step++) {
                const before = state;
                const act = [s => board.toggleSelected(s, cards[random(5)]), s => board.placeCard(s, random(6)), s => board.returnToTray(s),
                    s => board.tieWithLast(s), s => board.moveSelected(s, random(2) ? 1 : -1)][random(5)];
                state = act(state);
                const all = [...board.unplacedCards(state), ...state.tiers.flat()].sort().join('');
                if (all !== 'abcde' || state.tiers.length !== 5) wrong.push([run, step, all]);
                if (state.history.length > before.history.length) states.push(JSON.stringify(before.tiers));
                const changed = JSON.stringify(before.tiers) !== JSON.stringify(state.tiers);
                if (changed && state.history.length === before.history.length) wrong.push('lost');
            }
            while (states.length) {
                state = board.undoLast(state);
                if (JSON.stringify(state.tiers) !== states.pop()) wrong.push([run, 'undo']);
            }
            if (board.unplacedCards(state).length !== 5) wrong.push([run, 'not empty at the beginning']);
        }
        return wrong;
    }""")
    assert not wrong


def test_active_time_excludes_idle_and_hidden_time(page):
    total = page.evaluate("""async () => {
        const {ActiveTime} = await import('/static/timer.js');
        let at = 0;
        const time = new ActiveTime(500, () => at);
        for (at of [0, 10000, 40000]) time.recordActivity();       // 40 s at work
        at = 40000 + 3600000; time.recordActivity();               // an hour away counts as 90 s
        at += 5000; time.pause();                        // 5 s more, then hidden
        at += 600000; time.recordActivity(); at += 1000; time.recordActivity();
        return time.totalMs;
    }""")
    assert total == 500 + 40_000 + 90_000 + 5_000 + 1_000


def test_word_counts(page):
    counts = page.evaluate("""async () => {
        const {countWords} = await import('/static/paste_tracking.js');
        const long = 'a '.repeat(60000);
        return [countWords('', 'en'), countWords("It's two  words.", 'en'), countWords('안녕 하세요', 'ko'), countWords(long, 'en')];
    }""")
    assert counts == [0, 3, 2, 60_000]
