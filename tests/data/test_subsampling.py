"""Parts of rankings to train on."""

from __future__ import annotations

from instructgpt.data.packing import TokenizedExample
from instructgpt.data.rankings import LabelerRanks, RankedPrompt, count_labels, subsample_rankings


def ranked(number, *rankings):
    examples = [TokenizedExample([number], [index]) for index in range(len(rankings[0]))]
    labelers = tuple(LabelerRanks(ranks, f"labeler-{index}", "training") for index, ranks in enumerate(rankings))
    return RankedPrompt(examples, labelers, "simulated")


PROMPTS = [ranked(number, (1, 2, 3, 4), (2, 1, 1, 3)) for number in range(200)]


def test_larger_parts_include_smaller_ones_in_order():
    parts = [[p.examples[0].prompt_ids[0] for p in subsample_rankings(PROMPTS, n, 0, seed=5)] for n in (10, 50, 200, 0)]
    assert [len(part) for part in parts] == [10, 50, 200, 200]
    assert set(parts[0]) < set(parts[1])
    assert all(part == sorted(part) for part in parts)
    assert parts[0] != list(range(10)), "a random part"
    other = subsample_rankings(PROMPTS, 10, 0, seed=6)
    assert [p.examples[0].prompt_ids[0] for p in other] != parts[0]


def test_completions_keep_their_ranks_and_prompts_without_a_decided_pair_are_dropped():
    pairs = subsample_rankings(PROMPTS, 0, 2, seed=0)
    assert len(pairs) == 200
    drawn = set()
    for prompt in pairs:
        first, second = (example.completion_ids[0] for example in prompt.examples)
        drawn.add((first, second))
        assert prompt.labeler_ranks[0].ranks == (first + 1, second + 1)
        tied = {first, second} == {1, 2}
        assert len(prompt.labeler_ranks) == (1 if tied else 2), "the second labeler sees the middle two alike"
    assert len(drawn) == 6, "all pairs of four come up"
    few = subsample_rankings(PROMPTS, 20, 2, seed=0)
    assert all(prompt in pairs for prompt in few), "the draw of completions does not depend on the number of prompts"
    assert subsample_rankings([ranked(0, (1, 1, 1, 2))] * 40, 0, 2, seed=0)
    assert len(subsample_rankings([ranked(0, (1, 1, 1, 1))], 0, 2, seed=0)) == 0


def test_labels_are_counted_by_hand():
    assert count_labels(PROMPTS[:3]) == {"prompts": 3, "rankings": 6, "completions": 24, "pairs": 3 * (6 + 5)}
