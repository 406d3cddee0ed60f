"""Print the small world: python -m instructgpt.world [--seed N] [--count N]."""

from __future__ import annotations

import argparse
import textwrap
from random import Random

from instructgpt.records import Completion
from instructgpt.world import MAX_UTILITY, SimulatedLabelers, World
from instructgpt.world.corpus import DOCUMENT_GENERATORS, flawed_answer


def _print_documents(world: World, count: int) -> None:
    print("DOCUMENTS of the pretraining corpus (share of all documents)")
    counts = dict.fromkeys(DOCUMENT_GENERATORS, 0)
    for document in world.documents(10**9):
        kind = document.to_dict()["kind"]
        if counts[kind] < count:
            counts[kind] += 1
            print(f"\n- {kind} ({DOCUMENT_GENERATORS[kind][0]:.0%})")
            print(textwrap.indent(document.text, "    "))
        if min(counts.values()) == count:
            return


def _print_prompts(world: World, count: int) -> None:
    print("\nPROMPTS with demonstrations")
    counts: dict[str, int] = {}
    for prompt in world.prompts("ppo", 1000):
        use_case = prompt.use_case or ""
        counts[use_case] = counts.get(use_case, 0) + 1
        if counts[use_case] <= count:
            answer = world.demonstration(prompt.prompt)
            print(f"\n- {use_case}, asked by {prompt.user}\n    {prompt.prompt}\n    > {answer}")


def _print_rankings(world: World, count: int) -> None:
    print(f"\nRANKINGS (rank, rating 1 to 7, true utility of at most {MAX_UTILITY:g})")
    prompts = world.prompts("reward", 100)[: 3 * count]
    tasks, rng = [world.task(prompt.prompt) for prompt in prompts], Random(world.seed)
    candidates = [
        [Completion(prompt=task.text, completion=flawed_answer(task, tasks, rng), model="strangers") for _ in range(4)]
        for task in tasks
    ]
    for ranking in SimulatedLabelers(world).rank(candidates):
        print(f"\n- {ranking.prompt}   ({ranking.labeler})")
        for rank, rating, completion in sorted(
            zip(ranking.ranks, ranking.ratings or (), ranking.completions, strict=True)
        ):
            print(f"    {rank}  {rating}  {world.utility(ranking.prompt, completion):5.2f}  {completion}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m instructgpt.world", description="Show documents, prompts and rankings of the small world."
    )
    parser.add_argument("--seed", type=int, default=0, help="which world")
    parser.add_argument("--count", type=int, default=2, help="how many examples of each kind")
    options = parser.parse_args()
    world = World(options.seed)
    _print_documents(world, options.count)
    _print_prompts(world, options.count)
    _print_rankings(world, options.count)


if __name__ == "__main__":
    main()
