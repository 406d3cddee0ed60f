"""Stages of the demo in two checkouts, taking turns: what each phase costs here and there.

    git worktree add ../before d9b25fc && python bench/stages.py ../before
    python bench/stages.py ../before . --rounds 5 --only reward ppo

Every stage of the preset `demo` is made with a fixed small part of its work by one process of each checkout, from the
same files, which the second checkout has made. A first turn warms up and shows that both compute the same: the loss of
the first step, or the mean length of sampled completions. Phases are timed from outside, by the functions that do them,
so that a checkout need not know of phases. CPU seconds of one thread, medians of turns; the last lines say what this
comes to at the demo's own amounts of work.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sides import ROOT, Answer, Side, Work, asked

LESS: dict[str, dict[str, int]] = {
    "run": {"words": 150_000, "ranking_prompts": 200, "ppo_prompts": 512, "processes": 1},
    "pretrain": {"tokens": 62_000},
    "start": {"epochs": 2},
    "sft": {"epochs": 2},
    "ppo": {"episodes": 512},
    "ppo_ptx": {"episodes": 512},
    "exam": {"prompts": 100, "truth_samples": 1, "toxicity_prompts": 75, "exercises": 75, "documents": 75},
}
"""What is changed of the demo, so that a turn takes a minute."""
TIMES = {
    "pretrain": 50,
    "start": 5,
    "candidates": 25,
    "reward": 25,
    "sft": 5,
    "ppo": 24,
    "ppo_ptx": 24,
    "exam": 16,
    "exam, prompted": 4,
}
"""How many times a turn's work the demo does. The exam is put to four models, and in part to the prompted base."""
PARTS: dict[str, dict[str, Sequence[str]]] = {
    "train.pretrain": {
        "forward and backward": ["language_loss", "lm_loss"],
        "optimizer": ["descend", "optimizer_step"],
        "validation": ["validation_loss", "compute_validation_loss"],
    },
    "train.sft": {
        "forward and backward": ["language_loss", "lm_loss"],
        "optimizer": ["descend", "optimizer_step"],
        "validation": ["validate", "validate_policy"],
    },
    "evaluate.candidate_sampling evaluate.candidates": {"sampling": ["answers", "generate_answers"]},
    "train.reward": {
        "forward and backward": ["ranking_step", "ranking_backward"],
        "optimizer": ["descend", "optimizer_step"],
        "validation": ["accuracies", "evaluate_pair_accuracy"],
    },
    "train.rollout": {
        "sampling": ["sample", "sample_tokens", "sample_on_ranks", "sample_distributed"],
        "reference and values": ["of_completions", "per_token_values"],
    },
    "train.ppo": {
        "parity": ["check_parity", "check_logp_parity", "measure_logp_parity"],
        "policy and value update": ["improve", "minibatch_backward"],
        "pretraining text": ["pretraining_step", "ptx_backward"],
        "optimizer": ["descend", "optimizer_step", "average", "move_average", "update_ema"],
    },
    "evaluate.world_exam evaluate.small_world": {
        "answers": ["answers", "generate_answers"],
        "continuations": ["continuations", "generate_continuations"],
        "likelihood of text": ["text_logp", "text_logps"],
    },
}
"""The functions of each phase, by module. A checkout has one of the modules of a key, and some of the names."""
ONCE = {"all else", "parity"}
"""Phases whose work does not grow with the stage's: loading, reading and saving, the check before the first update.
Reward training scores once, too, what its offset is made of."""
DIRECTORIES = {"base": "pretrain", "world": "candidates"}
"""Sections of stages that have been named by their directories."""
AGREE = {"loss/train": 1e-3, "completion/length": 1.0}


class Watch:
    """CPU seconds by phase. One inside another belongs to the outer."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.seconds: dict[str, float] = {}
        self.open = False

    def put_on(self, owner: Any, name: str, phase: str) -> None:
        """Count what a function takes as a phase."""
        work = getattr(owner, name)

        def timed(*arguments: Any, **named: Any) -> Any:
            if self.open:
                return work(*arguments, **named)
            self.open, start = True, time.process_time()
            try:
                return work(*arguments, **named)
            finally:
                self.open = False
                self.seconds[phase] = self.seconds.get(phase, 0.0) + time.process_time() - start

        setattr(owner, name, timed)


def first_module(*names: str) -> Any:
    """Import the first of the modules that this checkout has."""
    found = [name for name in names if importlib.util.find_spec(f"instructgpt.{name}")]
    return importlib.import_module(f"instructgpt.{found[0]}")


def checkout(folder: Path) -> Work:
    """One side: it is asked for the input of all stages, or for one stage; of that it says what phases took,
    and what it logged first.
    """
    from instructgpt import pipeline

    ScalarModel = first_module("models.reward_model", "models.scalar").ScalarModel
    watch = Watch()
    for module, phases in PARTS.items():
        owner = first_module(*module.split())
        for phase, names in phases.items():
            for name in names:
                if hasattr(owner, name):
                    watch.put_on(owner, name, phase)
    watch.put_on(ScalarModel, "score", "score")
    told = json.loads((folder / "demo.json").read_text())
    config = pipeline.RunConfig(out=folder / "made", stages=told["stages"], **told["run"])
    stages = {
        DIRECTORIES.get(name, name): one
        for name, one in named(pipeline, "plan", "stage_configs", "build_stage_configs")(config).items()
    }
    if "rounds" in stages:  # later checkouts
        only_round = stages["rounds"][0]
        stages |= {"candidates": only_round.candidates, "reward": only_round.reward, **only_round.policies}
    works = stage_works(pipeline, config, stages)

    def work(name: str) -> Any:
        if name == "make":
            return make_input(pipeline, config, stages)
        out = Path(tempfile.mkdtemp(dir=folder))
        watch.seconds = {}
        start = time.process_time()
        works[name](out / "out")
        seconds = time.process_time() - start
        phases = watch.seconds | {"all else": seconds - sum(watch.seconds.values())}
        logged = out / "out" / "metrics.jsonl"
        first = json.loads(logged.read_text().split("\n", 1)[0]) if logged.exists() else {}
        shutil.rmtree(out)
        return {
            "phases": phases,
            "seconds": seconds,
            "first": {metric: first[metric] for metric in AGREE if metric in first},
        }

    return work


def named(module: Any, *names: str) -> Any:
    """A function of a checkout by one of the names it has had."""
    return next(getattr(module, name) for name in names if hasattr(module, name))


def stage_works(pipeline: Any, config: Any, stages: dict[str, Any]) -> dict[str, Callable[[Path], Any]]:
    """What makes each stage into a directory."""
    candidates = first_module("evaluate.candidate_sampling", "evaluate.candidates")
    sample = named(candidates, "gather_candidates", "sample_candidate_completions")
    mains = {"pretrain": pipeline.pretrain.main, "start": pipeline.sft.main, "reward": pipeline.reward.main}
    mains |= {"sft": pipeline.sft.main, "ppo": pipeline.ppo.main, "ppo_ptx": pipeline.ppo.main}
    works: dict[str, Callable[[Path], Any]] = {
        name: lambda out, name=name, main=main: main(stages[name].model_copy(update={"out": out}))
        for name, main in mains.items()
    }
    prompts = named(pipeline, "world_files", "get_world_files")(config.out / "world")["reward"]
    sampled = stages["candidates"].model_copy(update={"prompts": prompts, "part": 0, "parts": 1})
    works["candidates"] = lambda out: sample(sampled.model_copy(update={"out": out}), config.seed)
    for name, model, folder in (("exam", "sft", "start"), ("exam, prompted", "prompted", "base")):
        works[name] = lambda out, model=model, folder=folder: named(
            pipeline, "question_one", "examine", "examine_model"
        )(model, config.out / folder, out, config.seed, stages["exam"], config.device)
    return works


def make_input(pipeline: Any, config: Any, stages: dict[str, Any]) -> None:
    """What the stages are made from: the small world's files, base, start, rankings and reward model."""
    world = pipeline.World(config.seed)
    files = pipeline.write_world(config, world, stages["exam"])
    pipeline.pretrain.main(stages["pretrain"])
    pipeline.sft.main(stages["start"])
    if "rounds" in stages:
        pipeline.write_round_prompts(config, world, stages["rounds"][0])
        pipeline.rank_candidates(config, world, stages["rounds"][0], files["validation"])
    else:
        pipeline.rank_candidates(config, world, stages["candidates"], files)
    pipeline.reward.main(stages["reward"])


def demo() -> dict[str, Any]:
    """The preset with less work."""
    import yaml

    told = yaml.safe_load((ROOT / "src" / "instructgpt" / "presets" / "demo.yaml").read_text())
    run = told.pop("run") | LESS["run"]
    return {"run": run, "stages": {name: section | LESS.get(name, {}) for name, section in told.items()}}


# --- taking turns ----------------------------------------------------------------------------------------------------


def same_work(name: str, before: Any, now: Any) -> None:
    """End where the two checkouts do not compute the same."""
    for metric, difference in AGREE.items():
        if metric in before["first"] and not abs(before["first"][metric] - now["first"][metric]) <= difference:
            sys.exit(
                f"{name}: {metric} of the first step is {before['first'][metric]} before and {now['first'][metric]} now"
            )


def middle(answers: Sequence[Answer], phase: str) -> float:
    """Median CPU seconds of a phase."""
    return statistics.median(answer.said["phases"].get(phase, 0.0) for answer in answers)


def rows(name: str, before: Sequence[Answer], now: Sequence[Answer]) -> Iterator[tuple[str, float, float]]:
    """Each phase of a stage with its seconds in both, and the whole of it at the demo's amount of work."""
    phases = dict.fromkeys(phase for answer in (*before, *now) for phase in answer.said["phases"])
    whole = [0.0, 0.0]
    for phase in sorted(phases, key=lambda phase: phase == "all else"):
        seconds = middle(before, phase), middle(now, phase)
        yield phase, *seconds
        times = 1 if phase in ONCE or (name, phase) == ("reward", "score") else TIMES[name]
        whole = [sum_ + times * part for sum_, part in zip(whole, seconds, strict=True)]
    yield f"**the demo's {name}**", *whole


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path, nargs="?", help="a checkout")
    parser.add_argument("now", type=Path, nargs="?", default=ROOT, help="another; without it this one")
    parser.add_argument("--rounds", type=int, default=3, help="turns that count")
    parser.add_argument("--only", choices=tuple(TIMES), nargs="*", default=tuple(TIMES))
    options = asked(parser, {"checkout": checkout})
    if options.before is None:
        parser.error("which checkout is before?")
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as ends:
        folder = Path(temporary)
        (folder / "demo.json").write_text(json.dumps(demo()))
        now, before = (
            Side(sys.executable, __file__, "checkout", folder, source) for source in (options.now, options.before)
        )
        for side in (before, now):
            ends.callback(side.end)
        now.ask("make")
        total = [0.0, 0.0]
        print("| stage | phase | before, CPU s | now | ratio |\n|---|---|---|---|---|", flush=True)
        for name in options.only:
            same_work(name, before.ask(name).said, now.ask(name).said)
            turns = [(before.ask(name), now.ask(name)) for _ in range(options.rounds)]
            for phase, *seconds in rows(name, *zip(*turns, strict=True)):
                print(row(name, phase, *seconds), flush=True)
            total = [sum_ + part for sum_, part in zip(total, seconds, strict=True)]
        print(row("together", "**the demo's stages**", *total))


def row(name: str, phase: str, before: float, now: float) -> str:
    """A row of the table."""
    return (
        f"| {name} | {phase} | {before:.2f} | {now:.2f} | "
        f"{f'{before / now:.1f}' if now > 0.005 and before > 0.005 else '–'} |"
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
