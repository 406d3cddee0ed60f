"""What the pipeline is told, and from it what every stage is told: which files it reads, which directory it makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from instructgpt.config import TRAINING_ONLY_FIELDS, StageConfig, did_you_mean, make_config
from instructgpt.evaluate.candidate_sampling import CandidatesConfig
from instructgpt.evaluate.world_exam import ExamConfig
from instructgpt.records import Demonstration, Document, Prompt, Ranking, Record, SkippedLines, read_all_records
from instructgpt.train import ppo, pretrain, reward, sft

_STAGE_SECTIONS = ("pretrain", "start", "candidates", "reward", "sft", "ppo", "ppo_ptx", "exam")


class RunConfig(StageConfig):
    """The whole paper. Sizes of the small world, or files; what the stages are told stands in the file's other sections.

    A preset or a configuration file has a section for `run` and one for each of STAGES: `start` is the starting point of PPO,
    `sft` the SFT baseline, `candidates` what labelers are shown to rank, `exam` what the models are asked.
    """

    stage: ClassVar[str] = "run"
    excluded_fields: ClassVar[frozenset[str]] = TRAINING_ONLY_FIELDS

    out: Path = Field(Path("runs/demo"), description="the directory that holds every stage's directory")
    data: Path = Field(Path(), description="folder in which the files named in a configuration file are found")
    corpus: tuple[Path, ...] = Field((), description="pretraining text; without it the small world writes its own")
    demonstrations: tuple[Path, ...] = Field((), description="demonstrations, with --corpus")
    rankings: tuple[Path, ...] = Field((), description="rankings, with --corpus")
    prompts: tuple[Path, ...] = Field(
        (), description="prompts for PPO, with --corpus; without it those of the demonstrations"
    )
    words: int = Field(3_000_000, ge=1000, description="words of the small world's corpus")
    demonstration_prompts: int = Field(400, ge=10, description="prompts of the small world that labelers demonstrate")
    ranking_prompts: int = Field(3000, ge=10, description="prompts of the small world whose completions labelers rank")
    ppo_prompts: int = Field(3000, ge=10, description="prompts of the small world that PPO answers")
    labelers: int = Field(3, ge=1, description="simulated labelers who rank the completions of each prompt")
    through_site: bool = Field(
        False, description="simulated labelers work over HTTP on a labelers' site of this run; its exports go on"
    )
    processes: int = Field(2, ge=1, description="processes that work side by side (CPU)")
    stages: dict[str, dict[str, Any]] = Field({}, description="what each stage is told")

    def ineffective_options(self) -> Any:
        """Files come together; sections must be of stages that exist."""
        for name in ("demonstrations", "rankings"):
            if bool(self.corpus) != bool(getattr(self, name)):
                yield f"--corpus, --demonstrations and --rankings belong together; --{name if self.corpus else 'corpus'} is missing"
        for name in ("data", "prompts"):
            if name in self.model_fields_set and not self.corpus:
                yield f"--{name} has no effect without --corpus"
        if self.through_site and self.corpus:
            yield "--through-site has no effect with --corpus: people already worked"
        for name in self.stages.keys() - set(_STAGE_SECTIONS):
            yield f"no stage '{name}'{did_you_mean(name, _STAGE_SECTIONS)}; sections can be run, {', '.join(_STAGE_SECTIONS)}"


def build_stage_configs(config: RunConfig) -> dict[str, Any]:
    """The configuration of every stage, by its section, made before the first one starts: a mistake in a section shows at once.

    Raises:
        BadInput: a section says something that does not exist, or that would have no effect.
    """
    base, start, reward_model = (config.out / name for name in ("base", "start", "reward"))
    files = get_input_files(config)
    processes = {"processes": config.processes}
    corpus, demonstrations = {"corpus": files["corpus"]}, {"data": files["demonstrations"]}
    rankings = {"data": files["rankings"], "demonstrations": files["demonstrations"]}
    ppo_settings = {"policy": str(start), "reward": reward_model, "prompts": files["ppo"]}
    sections: dict[
        str, tuple[type[StageConfig], str, dict[str, Any]]
    ] = {  # section: its config, its directory, what the pipeline knows
        "pretrain": (pretrain.PretrainConfig, "base", corpus | processes),
        "start": (
            sft.SFTConfig,
            "start",
            {"base": str(base), "pretraining": files["corpus"]} | demonstrations | (processes if config.corpus else {}),
        ),
        "reward": (reward.RewardConfig, "reward", {"base": str(start)} | rankings | processes),
        "ppo_ptx": (ppo.PPOConfig, "ppo_ptx", {"pretraining": files["corpus"]} | ppo_settings),
    }
    if not config.corpus or "ppo" in config.stages:
        sections["ppo"] = (ppo.PPOConfig, "ppo", ppo_settings)
    if not config.corpus:
        sections["sft"] = (sft.SFTConfig, "sft", {"base": str(base), "reward": reward_model} | demonstrations)
        candidates_settings = {
            "policy": str(start),
            "base": str(base),
            "prompts": config.out,
            "parts": config.processes,
        }
        sections["candidates"] = (CandidatesConfig, "world", candidates_settings)
    stages: dict[str, Any] = {"exam": make_config(ExamConfig, config.stages.get("exam", {}), source="section exam")}
    for section, (config_class, directory, settings) in sections.items():
        common = {name: getattr(config, name) for name in ("seed", "device", "resume", "track")} | {
            "out": config.out / directory
        }
        stages[section] = make_config(
            config_class, common, settings, config.stages.get(section, {}), source=f"section {section}"
        )
    return stages


def get_input_files(config: RunConfig) -> dict[str, tuple[Path, ...]]:
    """Where the stages' input is, or will be: files of the small world, or people's."""
    if not config.corpus:
        return {name: (file,) for name, file in get_world_files(config.out / "world").items()}
    files = {
        name: tuple(config.data / path for path in getattr(config, name))
        for name in ("corpus", "demonstrations", "rankings")
    }
    prompts = tuple(config.data / path for path in config.prompts) or files["demonstrations"]
    return files | {"prompts": prompts, "ppo": (config.out / "prompts" / "training.jsonl",)}


def check_input_files(config: RunConfig, stages: dict[str, Any]) -> None:
    """Read people's files once before anything starts, so that no bad line waits hours for its stage.

    Raises:
        BadInput: a file is missing, or a line of it is wrong and its stage was not told --skip-bad.
    """
    if not config.corpus:
        return
    files = get_input_files(config)
    record_classes: dict[str, tuple[type[Record], str]] = {
        "corpus": (Document, "pretrain"),
        "demonstrations": (Demonstration, "start"),
        "rankings": (Ranking, "reward"),
        "prompts": (Prompt, "ppo_ptx"),
    }
    for name, (record_class, stage) in record_classes.items():
        read_all_records(record_class, files[name], SkippedLines(getattr(stages[stage], "skip_bad", False)))


def get_world_files(folder: Path) -> dict[str, Path]:
    """Where everything of the small world is, or will be."""
    names = ("corpus", "demonstrations", "rankings", "heldout_rankings", "reward", "ppo", "validation", "test")
    return {name: folder / f"{name}.jsonl" for name in names}
