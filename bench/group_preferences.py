"""Two groups of labelers with known utilities in the small world: what pooling costs each, and what gives it back.

    python bench/group_preferences.py --out runs/groups --bases runs/demo-0/base runs/demo-3/base
    python bench/group_preferences.py --out runs/groups --bases runs/demo-0/base --ppo

A base is that of a demo run; its seed is that of its world. Both groups want right answers. They differ in one thing: a
friendly sentence at the end costs the majority 1.5 of utility, and gives the minority 2. A quarter of the labelers are
the minority; they write a quarter of the demonstrations and of the training rankings.

    pooled        the score of all labelers together
    weighted      the mean of both groups' scores, which weigh the same
    conditioned   each group is answered by its own score
    max-min       the mixture of both scores that makes the smaller expected score of a group largest
    known utility best of N by the group's true utility: what N completions allow

All but the last choose the best of N completions of one SFT model; --ppo trains policies for the same scores. Finished
stages are not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
from torch import Tensor

from instructgpt import (
    PPOConfig,
    Prompt,
    RewardConfig,
    SFTConfig,
    load_policy,
    load_reward_model,
    make_config,
    sample,
    train_ppo,
    train_reward,
    train_sft,
)
from instructgpt.records import Demonstration, Ranking, write_records
from instructgpt.sampling.completions import SampledCompletion, retokenize_for
from instructgpt.statistics.intervals import mean
from instructgpt.world.labelers import LABELER_NOISE, SimulatedLabeler, ranks_by_utility
from instructgpt.world.utility import UTILITY_WEIGHTS
from instructgpt.world.world import World

SENTENCE = "Have a good day."
TASTES = {"majority": -1.5, "minority": 2.0}
"""Utility of the sentence to each group."""
PEOPLE = {"training": {"majority": 15, "minority": 5}, "heldout": {"majority": 8, "minority": 8}}
DEMONSTRATIONS, RANKING_PROMPTS, VALIDATION_PROMPTS, TEST_PROMPTS, EPISODES = 200, 5_000, 250, 250, 4_096
PER_RANKING, BEST_OF, PPO_SAMPLES, MAX_TOKENS = 4, 16, 4, 32
SPREAD = 0.35
"""Standard deviation of people's weights around their group's, relative."""
CPU = torch.device("cpu")
PPO_OPTIONS = {"batch": 512, "minibatch": 128, "lr": 4e-4, "value_lr": 1e-3, "kl_coef": 0.05, "ema": 0.9}
PPO_GROUPS: dict[str, dict[str, Any]] = {
    "pooled": {},
    "weighted": {"group": ["majority", "minority"], "group_aggregation": "mean"},
    "majority": {"group": ["majority"]},
    "minority": {"group": ["minority"]},
    "max-min": {"group": ["majority", "minority"], "group_aggregation": "max-min"},
}


@dataclass(frozen=True, slots=True)
class GroupLabeler:
    """A simulated person of a group."""

    labeler: SimulatedLabeler
    group: str
    taste: float

    def perceived_utility(self, world: World, completion: SampledCompletion) -> float:
        core, friendly = split_sentence(completion.text)
        judgment = world.judge(completion.prompt.prompt, core, completion.finish)
        return self.labeler.perceived_utility(judgment) + self.taste * friendly


def split_sentence(text: str) -> tuple[str, bool]:
    """Return the answer without the friendly sentence, and whether it ended with it."""
    core = text.strip().removesuffix(SENTENCE).strip()
    return core, core != text.strip()


def group_utility(world: World, completion: SampledCompletion, group: str) -> float:
    core, friendly = split_sentence(completion.text)
    return world.utility(completion.prompt.prompt, core, completion.finish) + TASTES[group] * friendly


def make_people(world: World, cohort: str) -> list[GroupLabeler]:
    rng = Random(f"groups {world.seed} {cohort}")
    people = []
    for group, count in PEOPLE[cohort].items():
        for index in range(count):
            weights = {name: weight * max(0.1, rng.gauss(1, SPREAD)) for name, weight in UTILITY_WEIGHTS.items()}
            labeler = SimulatedLabeler(f"{cohort}-{group}-{index}", weights)
            people.append(GroupLabeler(labeler, group, TASTES[group] * max(0.1, rng.gauss(1, SPREAD))))
    return people


def write_demonstrations(world: World, file: Path) -> None:
    """Write right answers; those of the minority end with the friendly sentence."""
    people, records = make_people(world, "training"), []
    for index, prompt in enumerate(world.prompts("sft", DEMONSTRATIONS)):
        person = people[index % len(people)]
        answer = world.task(prompt.prompt).gold_answer(Random(f"groups {world.seed} demonstration {index}"))
        text = f"{answer} {SENTENCE}" if person.taste > 0 else answer
        records.append(Demonstration(prompt=prompt.prompt, completion=text, labeler=person.labeler.name))
    write_records(file, records)


def rank(world: World, person: GroupLabeler, cohort: Any, completions: Sequence[SampledCompletion]) -> Ranking:
    noise = Random(f"groups {world.seed} {person.labeler.name} {completions[0].prompt.prompt}")
    utilities = [
        person.perceived_utility(world, completion) + noise.gauss(0, LABELER_NOISE) for completion in completions
    ]
    return Ranking(
        prompt=completions[0].prompt.prompt,
        completions=tuple(completion.text for completion in completions),
        finish=tuple(completion.finish for completion in completions),
        ranks=ranks_by_utility(utilities),
        labeler=person.labeler.name,
        cohort=cohort,
        group=person.group,
    )


def write_rankings(world: World, policy: Path, folder: Path) -> None:
    """Write rankings of the policy's completions: one person each for training, one of either group for validation."""
    model, tokenizer = load_policy(policy, CPU)
    rng = Random(f"groups {world.seed} assignment")
    for cohort, split, count in (
        ("training", "reward", RANKING_PROMPTS),
        ("heldout", "validation", VALIDATION_PROMPTS),
    ):
        prompts = world.prompts(split, count)
        completions = sample(model, tokenizer, prompts, max_tokens=MAX_TOKENS, seed=world.seed, per_prompt=PER_RANKING)
        people, rankings = make_people(world, cohort), []
        for start in range(0, len(completions), PER_RANKING):
            group = completions[start : start + PER_RANKING]
            if cohort == "training":
                judges = [rng.choice(people)]
            else:
                judges = [rng.choice([person for person in people if person.group == name]) for name in TASTES]
            rankings += [rank(world, person, cohort, group) for person in judges]
        write_records(folder / f"{cohort}.jsonl", rankings)


def train_models(world: World, base: Path, folder: Path) -> tuple[Path, Path]:
    """Train the SFT model and the reward model with its heads of groups. Return their directories."""
    folder.mkdir(parents=True, exist_ok=True)
    demonstrations = folder / "demonstrations.jsonl"
    write_demonstrations(world, demonstrations)
    common = {"seed": world.seed, "device": "cpu"}
    sft_options = {"base": str(base), "data": [demonstrations], "epochs": 10, "keep": "last", "batch": 16, "lr": 5e-4}
    sft = train_sft(make_config(SFTConfig, common, sft_options, {"out": folder / "sft"}))
    if not (folder / "heldout.jsonl").exists():
        write_rankings(world, sft, folder)
    reward_options = {
        "base": str(sft),
        "data": [folder / "training.jsonl"],
        "validation": [folder / "heldout.jsonl"],
        "demonstrations": [demonstrations],
        "batch": 8,
        "lr": 7e-4,
        "groups": True,
    }
    return sft, train_reward(make_config(RewardConfig, common, reward_options, {"out": folder / "reward"}))


# --- best of N -------------------------------------------------------------------------------------------------------


def score_completions(reward: Path, tokenizer: Any, completions: Sequence[SampledCompletion]) -> dict[str, Tensor]:
    """Return the scores (P, N) of the shared head (`pooled`) and of each group."""
    scores: dict[str, Tensor] = {}
    for name in ("pooled", *TASTES):
        scorer = load_reward_model(reward, CPU, () if name == "pooled" else (name,))
        scores[name] = scorer.score(retokenize_for(scorer.tokenizer, tokenizer, completions)).view(-1, BEST_OF)
    return scores


def choose_max_min(first: Tensor, second: Tensor) -> Tensor:
    """Return the choices (P,) of the mixture of two scores whose smaller mean over the chosen is largest."""

    def smaller_mean(choice: Tensor) -> float:
        return min(float(scores.gather(1, choice[:, None]).mean()) for scores in (first, second))

    choices = [(weight * first + (1 - weight) * second).argmax(1) for weight in torch.linspace(0, 1, 101).tolist()]
    return max(choices, key=smaller_mean)


def measure_best_of_n(world: World, sft: Path, reward: Path) -> dict[str, Any]:
    model, tokenizer = load_policy(sft, CPU)
    prompts = world.prompts("test", TEST_PROMPTS)
    completions = sample(model, tokenizer, prompts, max_tokens=MAX_TOKENS, seed=world.seed + 1, per_prompt=BEST_OF)
    scores = score_completions(reward, tokenizer, completions)
    utilities = {
        group: torch.tensor([group_utility(world, completion, group) for completion in completions]).view(-1, BEST_OF)
        for group in TASTES
    }
    friendly = torch.tensor([split_sentence(c.text)[1] for c in completions], dtype=torch.float64).view(-1, BEST_OF)
    first, second = (scores[group] for group in TASTES)
    common = {
        "SFT": torch.zeros(len(prompts), dtype=torch.long),
        "pooled": scores["pooled"].argmax(1),
        "weighted": (first + second).argmax(1),
        "max-min": choose_max_min(first, second),
    }
    choices = {name: dict.fromkeys(TASTES, choice) for name, choice in common.items()}
    choices["conditioned"] = {group: scores[group].argmax(1) for group in TASTES}
    choices["known utility"] = {group: utilities[group].argmax(1) for group in TASTES}
    return {
        name: {
            group: describe(
                utilities[group].gather(1, choice[group][:, None])[:, 0].tolist(),
                friendly.gather(1, choice[group][:, None])[:, 0].tolist(),
            )
            for group in TASTES
        }
        for name, choice in choices.items()
    }


def describe(utilities: Sequence[float], friendly: Sequence[float], per_prompt: int = 1) -> dict[str, float | None]:
    estimate = mean(utilities, [index // per_prompt for index in range(len(utilities))])
    return {"utility": estimate.value, "low": estimate.low, "high": estimate.high, "friendly": fmean(friendly)}


# --- PPO -------------------------------------------------------------------------------------------------------------


def measure_ppo(world: World, sft: Path, reward: Path, folder: Path) -> dict[str, Any]:
    """Train a policy for each aggregation and measure both groups' utility of its samples."""
    prompts_file = folder / "prompts.jsonl"
    write_records(prompts_file, [Prompt(prompt=prompt.prompt) for prompt in world.prompts("ppo", 2_000)])
    common = {"policy": str(sft), "reward": [str(reward)], "prompts": [prompts_file], "episodes": EPISODES}
    common |= PPO_OPTIONS | {"max_tokens": MAX_TOKENS, "seed": world.seed, "device": "cpu"}
    measured: dict[str, Any] = {}
    for name, options in PPO_GROUPS.items():
        policy = train_ppo(make_config(PPOConfig, common, options, {"out": folder / f"ppo-{name}"}))
        measured[name] = measure_policy(world, policy)
    measured["conditioned"] = {group: measured.pop(group)[group] for group in TASTES}
    return {f"PPO, {name}": row for name, row in measured.items()}


def measure_policy(world: World, policy: Path) -> dict[str, Any]:
    model, tokenizer = load_policy(policy, CPU)
    prompts = world.prompts("test", TEST_PROMPTS)
    samples = sample(model, tokenizer, prompts, max_tokens=MAX_TOKENS, seed=world.seed + 1, per_prompt=PPO_SAMPLES)
    friendly = [float(split_sentence(completion.text)[1]) for completion in samples]
    return {
        group: describe([group_utility(world, completion, group) for completion in samples], friendly, PPO_SAMPLES)
        for group in TASTES
    }


# --- table -----------------------------------------------------------------------------------------------------------


def run_seed(base: Path, out: Path, *, with_ppo: bool) -> dict[str, Any]:
    seed = json.loads((base / "run.json").read_text(encoding="utf-8"))["config"]["seed"]
    folder, world = out / f"seed-{seed}", World(seed)
    file = folder / "results.json"
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    start = time.process_time()
    sft, reward = train_models(world, base, folder)
    if "best_of_n" not in result:
        result["best_of_n"] = measure_best_of_n(world, sft, reward)
        record = json.loads((reward / "run.json").read_text(encoding="utf-8"))
        result |= {"seed": seed, "groups": record["groups"], "cpu_seconds": time.process_time() - start}
    if with_ppo and "ppo" not in result:
        start = time.process_time()
        result["ppo"] = measure_ppo(world, sft, reward, folder)
        result["ppo_cpu_seconds"] = time.process_time() - start
    file.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def format_table(results: Sequence[dict[str, Any]], part: str) -> str:
    """Return a Markdown table: the mean over seeds, and in brackets each seed's number."""
    rows = [result[part] for result in results if part in result]
    if not rows:
        return ""
    head = "| policy | utility of the majority | of the minority | friendly, majority's answers | minority's |"
    lines = [head, "|---|---|---|---|---|"]

    def cell(name: str, group: str, number: str, style: Callable[[float], str]) -> str:
        values = [float(row[name][group][number]) for row in rows]
        seeds = f" ({', '.join(map(style, values))})" if len(values) > 1 else ""
        return style(fmean(values)) + seeds

    for name in rows[0]:
        utilities = [cell(name, group, "utility", "{:.2f}".format) for group in TASTES]
        shares = [cell(name, group, "friendly", "{:.0%}".format) for group in TASTES]
        lines.append(f"| {' | '.join([name, *utilities, *shares])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", type=Path, nargs="+", required=True, help="base models of demo runs")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ppo", action="store_true", help="train policies with PPO, too")
    args = parser.parse_args()
    results = [run_seed(base, args.out, with_ppo=args.ppo) for base in args.bases]
    for result in results:
        seconds = [f"{result[name]:.0f}" for name in ("cpu_seconds", "ppo_cpu_seconds") if name in result]
        print(f"seed {result['seed']}: {' + '.join(seconds)} CPU seconds")
    for part in ("best_of_n", "ppo"):
        print(format_table(results, part), end="\n\n")


if __name__ == "__main__":
    main()
