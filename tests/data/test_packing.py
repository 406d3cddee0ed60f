"""Batches by hand: what lies where, what is computed together, in which order.

pytest tests/data/test_packing.py
"""

import pytest

from instructgpt.data import packing
from instructgpt.data.packing import Span, TokenizedExample, collate, microbatches


def test_collate_by_hand():
    long = [5] * 8
    shared = [TokenizedExample(long, [7, 0]), TokenizedExample(long, []), TokenizedExample(long, [9])]
    batch = collate(
        [
            TokenizedExample([5, 6], [7, 0]),
            *shared[:2],
            TokenizedExample([8], [9]),
            *shared[2:],
            TokenizedExample([1], [2, 3, 4], document_starts=(2,)),
        ]
    )
    assert batch.input_ids.tolist() == [5, 6, 7, 0, *long, 7, 0, 8, 9, 9, 1, 2, 3, 4]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, *range(8), 8, 9, 0, 1, 8, 0, 1, 0, 1]
    assert batch.last_positions.tolist() == [3, 13, 11, 15, 16, 20]
    assert batch.target_positions.tolist() == [1, 2, 11, 12, 14, 11, 17, 18, 19]
    assert batch.targets.tolist() == [7, 0, 7, 0, 9, 9, 2, 3, 4]
    prompt = Span(4, 12)
    assert batch.spans == (
        Span(0, 4),
        prompt,
        Span(12, 14, prompt),
        Span(14, 16),
        Span(16, 17, prompt),
        Span(17, 19),
        Span(19, 21),
    )


def test_microbatches_hold_every_row_once_within_the_budget():
    lengths = [9, 2, 30, 2, 7, 1, 9]
    for budget in (1, 10, 18, 1000):
        groups = list(microbatches(lengths, budget))
        assert sorted(row for group in groups for row in group) == list(range(7))
        assert all(len(group) == 1 or len(group) * max(lengths[row] for row in group) <= budget for group in groups)
    assert list(microbatches([], 10)) == []
    assert list(microbatches([3, 3, 3], 6)) == [[0, 1], [2]]
    assert list(microbatches([3, 2, 2], 6, [1, 1, 2])) == [[1, 2], [0]]


def test_completions_of_one_prompt_are_computed_together():
    examples = [TokenizedExample([row % 3], [1] * (row % 4)) for row in range(12)]
    for budget in (1, 4, 8, 1000):
        groups = list(packing.microbatches_by_prompt(examples, budget))
        assert sorted(row for group in groups for row in group) == list(range(12))
        assert all(
            len(group) == 1 or len(group) * max(len(examples[row]) for row in group) <= budget for group in groups
        )
    assert len(groups) == 1
    prompts = [examples[row].prompt_ids[0] for row in groups[0]]
    assert prompts == sorted(prompts, key=prompts.index), "side by side"


def test_orders_are_permutations_that_follow_from_seed_and_epoch():
    orders = [packing.epoch_permutation(20, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert orders[0] == orders[3]
    assert len({tuple(order) for order in orders}) == 3


def test_an_epoch_takes_every_element_once_in_batches():
    assert packing.steps_per_epoch(7, 3) == 3
    epochs = [[packing.step_indices(step, 7, 3, seed=1) for step in range(first, first + 3)] for first in (0, 3)]
    assert [list(map(len, epoch)) for epoch in epochs] == [[3, 3, 1]] * 2
    assert all(sorted(row for rows in epoch for row in rows) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_a_stream_takes_every_element_equally_often():
    rows = [row for first in range(0, 48, 8) for row in packing.stream_indices(first, 8, 5, seed=0)]
    assert len(rows) == 48
    assert all(sorted(rows[i : i + 5]) == [0, 1, 2, 3, 4] for i in range(0, 45, 5))
    assert rows[:5] != rows[5:10]


@pytest.mark.parametrize("seed", [20_260_101, 2**32 - 1])
def test_a_date_may_be_a_seed(seed):
    """Stages derive seeds from seeds; however large, they stay within what a generator takes."""
    derived = seed * 1_000_003 + 499
    assert sorted(packing.epoch_permutation(5, derived, 3)) == list(range(5))
