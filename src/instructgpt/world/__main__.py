"""Shows the small world: python -m instructgpt.world [--seed N] [--count N]."""

from __future__ import annotations

import argparse
import textwrap
from random import Random

from instructgpt.records import Completion
from instructgpt.world import MAX_UTILITY, SimulatedLabelers, World
from instructgpt.world.corpus import KINDS, attempt


def show_documents(world: World, count: int) -> None:
    """Some documents of every kind."""
    print("DOCUMENTS of the pretraining corpus (share of all documents)")
    shown = dict.fromkeys(KINDS, 0)
    for document in world.documents(10**9):
        kind = document.row()["kind"]
        if shown[kind] < count:
            shown[kind] += 1
            print(f"\n- {kind} ({KINDS[kind][0]:.0%})")
            print(textwrap.indent(document.text, "    "))
        if min(shown.values()) == count:
            return


def show_prompts(world: World, count: int) -> None:
    """Some prompts of every use case, each with a demonstration."""
    print("\nPROMPTS with demonstrations")
    shown: dict[str, int] = {}
    for prompt in world.prompts("ppo", 1000):
        use_case = prompt.use_case or ""
        shown[use_case] = shown.get(use_case, 0) + 1
        if shown[use_case] <= count:
            print(f"\n- {use_case}, asked by {prompt.user}\n    {prompt.text}\n    > {world.demonstration(prompt.text)}")


def show_rankings(world: World, count: int) -> None:
    """How one labeler ranks strangers' answers, beside their true utility."""
    print(f"\nRANKINGS (rank, rating 1 to 7, true utility of at most {MAX_UTILITY:g})")
    prompts = world.prompts("reward", 100)[: 3 * count]
    tasks, rng = [world.task(prompt.text) for prompt in prompts], Random(world.seed)
    candidates = [
        [Completion(prompt=task.text, completion=attempt(task, tasks, rng), model="strangers") for _ in range(4)] for task in tasks
    ]
    for ranking in SimulatedLabelers(world).rank(candidates):
        print(f"\n- {ranking.prompt}   ({ranking.labeler})")
        for rank, rating, completion in sorted(zip(ranking.ranks, ranking.ratings or (), ranking.completions, strict=True)):
            print(f"    {rank}  {rating}  {world.utility(ranking.prompt, completion):5.2f}  {completion}")


def main() -> None:
    """Print documents, prompts and rankings of one world."""
    parser = argparse.ArgumentParser(
        prog="python -m instructgpt.world", description="Show documents, prompts and rankings of the small world."
    )
    parser.add_argument("--seed", type=int, default=0, help="which world")
    parser.add_argument("--count", type=int, default=2, help="how many examples of each kind")
    options = parser.parse_args()
    world = World(options.seed)
    show_documents(world, options.count)
    show_prompts(world, options.count)
    show_rankings(world, options.count)


if __name__ == "__main__":
    main()
