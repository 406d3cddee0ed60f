"""Stages that several cells have in common are made once, in `shared/STAGE-HASH/`, and linked into each cell.

What a stage makes is named by the hash of its options and of all stages before it. A shared directory is a small run
directory: what it needs is linked into it, and the pipeline's own function makes the rest. The links keep lineage as it
is: the cell's stages read the shared files and record their hashes. What is not shared, the cell's own `run` makes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instructgpt.run.configs import RunConfig
from instructgpt.stage_configs import REWARD_BASE_FOLDER, build_stage_configs
from instructgpt.sweep.cells import Axis, Cell, hash_settings, move_config, resolve_stages

_WORLD = ("corpus", "validation", "test", "demonstrations")
_RANKED = ("reward", "ppo", "rankings", "heldout_rankings")


@dataclass(frozen=True, slots=True)
class StageKind:
    """A stage of the pipeline: what it makes, from which stages, and which options of the run itself it reads."""

    outputs: tuple[str, ...]
    parents: tuple[str, ...] = ()
    section: str = ""
    run_options: tuple[str, ...] = ()
    exam_options: tuple[str, ...] = ()

    def reads(self, section: str, option: str) -> bool:
        """Return whether the stage depends on an option."""
        is_own = section == self.section
        return is_own or option in {"run": self.run_options, "exam": self.exam_options}.get(section, ())


_WORLD_OPTIONS = ("seed", "words", "demonstration_prompts", "labelers", "refusals")
_RANKING_OPTIONS = ("labelers", "labeler_noise", "ranking_prompts", "ppo_prompts", "refusals")
_CELL_OPTIONS = frozenset({"overoptimization"})
"""Options of the run that no shared stage reads."""
_EXAM_MODELS = {"base": "pretrain", "prompted": "pretrain", "sft": "sft", "ppo": "ppo", "ppo_ptx": "ppo_ptx"}
_TO_START = {
    "world": StageKind(tuple(f"world/{name}.jsonl" for name in _WORLD), (), "", _WORLD_OPTIONS, ("prompts",)),
    "pretrain": StageKind(("base",), ("world",), "pretrain"),
    "start": StageKind(("start",), ("world", "pretrain"), "start"),
}
_AFTER_START = {
    "candidates": StageKind(
        tuple(f"world/{name}.jsonl" for name in _RANKED), ("world", "pretrain", "start"), "candidates", _RANKING_OPTIONS
    ),
    "reward": StageKind(("reward",), ("world", "pretrain", "start", "candidates"), "reward", ("reward_base",)),
    "sft": StageKind(("sft",), ("world", "pretrain", "reward"), "sft"),
    "ppo": StageKind(("ppo",), ("world", "start", "candidates", "reward"), "ppo"),
    "ppo_ptx": StageKind(("ppo_ptx",), ("world", "start", "candidates", "reward"), "ppo_ptx"),
}
_AFTER_REWARD = ("sft", "ppo", "ppo_ptx")
_OWN_TRUNK = {"reward_pretrain": StageKind((REWARD_BASE_FOLDER,), ("world", "pretrain"), "reward_pretrain")}
_REWARD_ON_OWN_TRUNK = {
    "reward": replace(_AFTER_START["reward"], parents=("world", "pretrain", "start", "candidates", "reward_pretrain"))
}
_START_SAMPLES = {"start_samples": StageKind(("start_samples",), ("world", "start"), "start_samples")}
_BASELINES = {
    "public_tasks": StageKind(
        ("world/public_tasks.jsonl", "public_tasks"), ("world", "pretrain", "sft"), "public_tasks", _WORLD_OPTIONS
    ),
    "dpo": StageKind(("dpo",), ("world", "start", "candidates"), "dpo"),
    # the learning rate is that of SFT, the length that of PPO
    "expert_iteration": StageKind(
        ("expert_iteration",), ("start", "candidates", "reward", "sft", "ppo"), "expert_iteration"
    ),
    "best_of_n": StageKind(("best_of_n",), ("world", "start", "reward", "ppo"), "best_of_n"),
}


def _exams(models: Mapping[str, str]) -> dict[str, StageKind]:
    return {
        f"exam-{model}": StageKind((f"evaluation/{model}.jsonl",), ("world", stage), "exam")
        for model, stage in models.items()
    }


_FROM_FILES = {
    "pretrain": StageKind(("base",), (), "pretrain", ("seed",)),
    "start": StageKind(("start",), ("pretrain",), "start", ("seed",)),
    "reward": StageKind(("reward",), ("start",), "reward", ("reward_base",)),
}


def stage_kinds(config: RunConfig) -> dict[str, StageKind]:
    """Return the stages of a run that cells can share, in the order of the pipeline."""
    if config.has_files:
        kinds = dict(_FROM_FILES)
        if config.base is not None:
            del kinds["pretrain"]
            kinds["start"] = StageKind(("start",), (), "start", ("seed",))
        if config.baselines:
            del kinds["reward"]  # its half of the rankings is in the run directory
        return kinds
    if config.through_site:  # people and rankings are on a site inside the run directory
        return {}
    if config.rounds > 1:
        return _TO_START
    has_own_trunk = "reward_pretrain" in config.stages
    kinds = _TO_START | (_OWN_TRUNK | _AFTER_START | _REWARD_ON_OWN_TRUNK if has_own_trunk else _AFTER_START)
    if config.overoptimization:
        return {name: kind for name, kind in kinds.items() if name not in _AFTER_REWARD} | _START_SAMPLES
    baselines = _BASELINES if config.baselines else {}
    return kinds | baselines | _exams(_EXAM_MODELS | {name: name for name in baselines})


@dataclass(frozen=True, slots=True)
class SharedStage:
    """A stage that is made once for several cells."""

    stage: str
    key: str
    parents: tuple[str, ...]  # names of shared stages
    config: RunConfig  # of the first cell that needs it
    outputs: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.stage}-{self.key}"


def find_shared_stages(cell: Cell, axes: Sequence[Axis]) -> list[SharedStage]:
    """Return the stages of a cell that at least one axis leaves as they are, in order.

    The rule asks for the options that are varied and not for the cells at hand, so that cells which are added later
    find what was made before.
    """
    config, kinds = cell.config, stage_kinds(cell.config)
    resolved, shared = resolve_stages(config), dict[str, SharedStage]()
    for stage, kind in kinds.items():
        if not any(_leaves_as_is(axis, stage, kinds) for axis in axes) or any(p not in shared for p in kind.parents):
            continue
        settings = {
            "stage": stage,
            "options": resolved.get(kind.section, {}),
            "run": {name: resolved["run"][name] for name in kind.run_options},
            "exam": {name: resolved["exam"][name] for name in kind.exam_options},
            "parents": {parent: shared[parent].key for parent in kind.parents},
        }
        parents = tuple(shared[parent].name for parent in kind.parents)
        shared[stage] = SharedStage(stage, hash_settings(settings), parents, config, kind.outputs)
    return list(shared.values())


def _leaves_as_is(axis: Axis, stage: str, kinds: Mapping[str, StageKind]) -> bool:
    """Return whether an option that is varied can change neither a stage nor one before it."""
    is_known = axis.option in _CELL_OPTIONS or any(axis.option in kind.run_options for kind in kinds.values())
    if "run" in axis.sections and not is_known:
        return False  # who reads it is not known here
    stages = set(_with_parents(stage, kinds))
    return not any(kinds[name].reads(section, axis.option) for name in stages for section in axis.sections)


def _with_parents(stage: str, kinds: Mapping[str, StageKind]) -> Iterator[str]:
    yield stage
    for parent in kinds[stage].parents:
        yield from _with_parents(parent, kinds)


# --- making and linking ----------------------------------------------------------------------------------------------


def make_shared_stage(stage: SharedStage, folder: Path, parents: Sequence[SharedStage]) -> dict[str, Any]:
    """Make a shared stage in `folder/NAME`, unless it is there. `parents`: all shared stages before it."""
    directory = folder / stage.name
    directory.mkdir(parents=True, exist_ok=True)
    for parent in parents:
        link_outputs(parent, folder, directory)
    config = move_config(stage.config, directory)
    run_stage(stage.stage, config)
    return {"directory": str(directory)}


def link_outputs(stage: SharedStage, folder: Path, directory: Path) -> None:
    """Link what a shared stage made into a run directory."""
    for output in stage.outputs:
        target, link = folder / stage.name / output, directory / output
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink() and not link.exists():
            link.unlink()  # the sweep was moved
        with contextlib.suppress(FileExistsError):
            link.symlink_to(os.path.relpath(target, link.parent))


def run_stage(stage: str, config: RunConfig) -> None:
    """Run one stage of the pipeline in the run directory of a configuration."""
    import torch

    from instructgpt import pipeline, pipeline_baselines, pipeline_overoptimization
    from instructgpt.evaluate.frontier import frontier_prompts
    from instructgpt.train import ppo, pretrain, reward, sft
    from instructgpt.world import World

    torch.set_num_threads(1)
    stages = build_stage_configs(config)
    exam, model = stages["exam"], stage.removeprefix("exam-")
    if stage == "world":
        pipeline.write_world(config, World(config.seed), exam)
    elif stage in ("pretrain", "reward_pretrain"):
        pretrain.main(stages[stage])
    elif stage == "start_samples":
        pipeline_overoptimization.make_start_samples(stages[stage], World(config.seed))
    elif stage in ("start", "sft"):
        sft.main(stages[stage])
    elif stage == "candidates":
        files = config.out / "world" / "validation.jsonl"
        pipeline.write_round_prompts(config, World(config.seed), stages["rounds"][0])
        pipeline.rank_candidates(config, World(config.seed), stages["rounds"][0], files)
    elif stage == "reward":
        reward.main(stages["reward"] if config.has_files else stages["rounds"][0].reward)
    elif stage in ("ppo", "ppo_ptx"):
        ppo.main(stages["rounds"][0].policies[stage])
    elif stage in _BASELINES:
        pipeline_baselines.write_public_tasks(config, World(config.seed), stages)
        methods = stages["baselines"]
        prompts = frontier_prompts(methods["best_of_n"], World(config.seed))
        function, arguments = pipeline_baselines.build_baseline_job(methods[stage], prompts)
        function(*arguments)
    elif model == "best_of_n":
        out = config.out / "evaluation" / f"{model}.jsonl"
        pipeline_baselines.examine_best_of_n(stages["baselines"][model], out, config.seed, exam)
    else:
        folder = config.out / {"base": "base", "prompted": "base"}.get(model, model)
        out = config.out / "evaluation" / f"{model}.jsonl"
        pipeline.examine_model(model, folder, out, config.seed, exam, config.device)


def make_cell(cell: Cell, directory: Path, folder: Path, shared: Sequence[SharedStage]) -> dict[str, Any]:
    """Make a cell: link what is shared, and run the pipeline for the rest."""
    import torch

    from instructgpt import pipeline
    from instructgpt.run.directory import RunDirectory

    torch.set_num_threads(1)
    config = move_config(cell.config, directory)
    run = RunDirectory.open(config)
    if not run.is_finished:
        run.create()  # before the links: a directory with other files in it is no run directory
        for stage in shared:
            link_outputs(stage, folder, directory)
        pipeline.main(config)
    return {"directory": str(directory)}
