"""The scripts' pure parts in a real browser, each against something that does not share their code.

Run: python -m pytest tests/label/web/test_scripts.py
"""

from __future__ import annotations

from random import Random

import pytest
from support.browser import browser, server, watched  # noqa: F401
from test_safe_text import CARDS, PAYLOADS

from instructgpt.label.tasks.form_fields import fields_to_payload, payload_to_fields


@pytest.fixture
def page(browser, server, watched):  # noqa: F811
    """Any page of the site, from which its modules can be imported."""
    context = browser.new_context()
    watched.watch(context, server.url)
    opened = context.new_page()
    opened.goto(f"{server.url}/sign-in")
    return opened


def test_form_fields_are_the_same_mapping_as_the_servers(page):
    for payload in PAYLOADS:
        fields = [
            [name, value] for name, value in [*payload_to_fields(payload), ("active_ms", str(payload["active_ms"]))]
        ]
        made, back = page.evaluate(
            """async ([kind, fields, cards, payload]) => {
                const form = await import('/static/form.js');
                return [form.payloadOf(kind, fields, cards), form.fieldsOf(payload)];
            }""",
            [payload["kind"], fields, CARDS, payload],
        )
        assert made == payload == fields_to_payload(payload["kind"], [tuple(pair) for pair in fields], CARDS)
        assert sorted(map(tuple, back)) == sorted(payload_to_fields(payload))


def longest_common(one: list[str], other: list[str]) -> int:
    """Length of a longest common subsequence, by the table of the definition."""
    row = [0] * (len(other) + 1)
    for left in one:
        above, row = row, [0]
        for at, right in enumerate(other):
            row.append(above[at] + 1 if left == right else max(row[at], above[at + 1]))
    return row[-1]


def test_the_word_diff_finds_a_longest_common_part(page):
    rng = Random(5)
    cases = [[[rng.choice("abc") for _ in range(rng.randint(0, 12))] for _ in range(2)] for _ in range(150)]
    for (one, other), pairs in zip(
        cases,
        page.evaluate(
            "async cases => { const {common} = await import('/static/diff.js'); return cases.map(c => common(...c)); }",
            cases,
        ),
        strict=True,
    ):
        assert len(pairs) == longest_common(one, other)
        assert all(one[left] == other[right] for left, right in pairs)
        assert pairs == sorted(pairs)
        assert len({left for left, _ in pairs}) == len({right for _, right in pairs}) == len(pairs)


def test_the_word_diff_gives_both_texts_back(page):
    texts = ["a b  c\n\nd", "a c d e", "", "같은 말 다른 말", "違う文です", "x " * 3000]
    for left in texts:
        for right in texts:
            found = page.evaluate("async both => (await import('/static/diff.js')).compare(...both)", [left, right])
            if found is not None:
                assert "".join(run["text"] for run in found["left"]) == left
                assert "".join(run["text"] for run in found["right"]) == right


def test_whatever_is_done_on_the_board_every_card_is_in_one_place_and_undo_goes_back(page):
    wrong = page.evaluate("""async () => {
        const board = await import('/static/board.js'), wrong = [];
        let seed = 7;
        const random = (n) => (seed = (seed * 48271) % 2147483647) % n;
        const cards = ['a', 'b', 'c', 'd', 'e'];
        for (let run = 0; run < 200; run++) {
            let state = board.start(cards);
            const states = [];
            for (let step = 0; step < 30; step++) {
                const before = state;
                const act = [s => board.pick(s, cards[random(5)]), s => board.place(s, random(6)), s => board.lift(s),
                    s => board.tie(s), s => board.move(s, random(2) ? 1 : -1)][random(5)];
                state = act(state);
                const all = [...board.tray(state), ...state.tiers.flat()].sort().join('');
                if (all !== 'abcde' || state.tiers.length !== 5) wrong.push([run, step, all]);
                if (state.past.length > before.past.length) states.push(JSON.stringify(before.tiers));
                const changed = JSON.stringify(before.tiers) !== JSON.stringify(state.tiers);
                if (changed && state.past.length === before.past.length) wrong.push('lost');
            }
            while (states.length) {
                state = board.undo(state);
                if (JSON.stringify(state.tiers) !== states.pop()) wrong.push([run, 'undo']);
            }
            if (board.tray(state).length !== 5) wrong.push([run, 'not empty at the beginning']);
        }
        return wrong;
    }""")
    assert not wrong


def test_active_time_leaves_idle_and_hidden_time_out(page):
    total = page.evaluate("""async () => {
        const {ActiveTime} = await import('/static/timer.js');
        let at = 0;
        const time = new ActiveTime(500, () => at);
        for (at of [0, 10000, 40000]) time.beat();       // 40 s at work
        at = 40000 + 3600000; time.beat();               // an hour away counts as 90 s
        at += 5000; time.pause();                        // 5 s more, then hidden
        at += 600000; time.beat(); at += 1000; time.beat();
        return time.total;
    }""")
    assert total == 500 + 40_000 + 90_000 + 5_000 + 1_000


def test_words_are_counted_and_pasted_shares_measured(page):
    counts = page.evaluate("""async () => {
        const {countWords} = await import('/static/typed.js');
        const long = 'a '.repeat(60000);
        return [countWords('', 'en'), countWords("It's two  words.", 'en'), countWords('안녕 하세요', 'ko'), countWords(long, 'en')];
    }""")
    assert counts == [0, 3, 2, 60_000]
