"""Candidate lists for labelers: one list per occurrence of a prompt, and distractors."""

from collections import Counter

from instructgpt.evaluate.candidate_sampling import (
    build_distractors,
    candidate_list_key,
    enumerate_occurrences,
    read_candidate_parts,
)
from instructgpt.records import Completion, write_records


def completion(prompt: str, said: str, turn: int = 0, model: str = "policy") -> Completion:
    return Completion.model_validate({"prompt": prompt, "completion": said, "model": model, "round": turn})


def test_repeated_prompts_are_numbered() -> None:
    assert list(enumerate_occurrences(["a", "b", "a", "a", "b"])) == [("a", 0), ("b", 0), ("a", 1), ("a", 2), ("b", 1)]


def test_each_occurrence_of_a_prompt_has_its_own_list(tmp_path) -> None:
    write_records(
        tmp_path / "part-0.jsonl",
        [completion("a", "x"), completion("a", "x"), completion("a", "y"), completion("a", "x", 1)],
    )
    write_records(tmp_path / "part-1.jsonl", [completion("a", "z", 1), completion("a", "z", 2), completion("b", "x")])
    lists = read_candidate_parts(tmp_path, "part-*.jsonl")
    assert sorted([one.completion for one in shown] for shown in lists) == [
        ["x", "y"],
        ["x", "z"],
    ]  # a single completion cannot be ranked


def test_distractor_answers_a_prompt_with_the_same_ending() -> None:
    made = [completion("Where is the cat?", "In the sea.", turn) for turn in range(2)]
    made += [completion("What is the cat?", "An animal."), completion("Name a frog.", "Fred.")]
    made += [completion("Name a frog.", "Base.", model="prompted")]
    strays = build_distractors(made)
    said = {(one.prompt, one.completion) for one in made}
    assert all((one.prompt, one.completion) not in said and one.model == "stray" for one in strays)
    assert Counter(map(candidate_list_key, strays)) == Counter(
        candidate_list_key(one) for one in made[:4]
    )  # one per list
    assert {one.prompt: one.completion for one in strays}["What is the cat?"] == "In the sea."
