"""The configuration of every stage of the pipeline, and the files that the stages hand on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import Field

from instructgpt.baselines.configs import ExpertIterationConfig
from instructgpt.config import TRAINING_ONLY_FIELDS, StageConfig, make_config
from instructgpt.errors import InputError
from instructgpt.evaluate.configs import BestOfNConfig, CandidatesConfig, ExamConfig, StartSamplesConfig
from instructgpt.run.configs import RunConfig
from instructgpt.run.directory import read_run_record
from instructgpt.run.rounds import control_directory_name, round_directory_name
from instructgpt.train.configs import DPOConfig, PPOConfig, PretrainConfig, RewardConfig, SFTConfig
from instructgpt.world.labelers import LABELER_NOISE

POLICIES = ("ppo", "ppo_ptx")
BEST_POLICY = "ppo_ptx"
"""The policy of a round: it writes candidates of the next ones."""
_DPO_DEFAULTS = {"batch": 32, "lr": 1e-4, "beta": 1.0, "keep": "last"}
_EXPERT_ITERATION_DEFAULTS = {"n": 8, "lr": 3e-4}
"""Of the small world, whose models are a thousandth of those that the commands' defaults are for: the best of six cells
on validation prompts (bench/baseline_search.py)."""
REWARD_BASE_FOLDER = "reward_base"
"""Directory of the reward model's own trunk."""
JUDGE = "judge"
"""Stage of the second reward model of --baselines on your own files."""
_FILE_SAMPLES = 64
"""Samples of best of n with your own files, whose models take longer than the small world's."""
FRONTIER_POLICIES = 4
"""Policies that PPO and DPO save along a run with --baselines."""
_OVEROPTIMIZATION_POLICIES = 12
"""The same with --overoptimization."""
_MethodSettings = dict[str, tuple[type[StageConfig], dict[str, Any]]]
"""Config class and settings of the stage of each method."""
_PolicyStage = TypeVar("_PolicyStage", PPOConfig, DPOConfig)
_ROUND_SEEDS = 1_000_003
"""Distance of two rounds' seeds of candidates and labelers: a prompt that returns gets other completions and noise."""


class RankingsConfig(StageConfig):
    """Rankings of a round's candidates by both cohorts of labelers."""

    stage: ClassVar[str] = "rankings"
    excluded_fields: ClassVar[frozenset[str]] = TRAINING_ONLY_FIELDS

    labelers: int = Field(ge=1, description="labelers who rank the completions of each prompt")
    through_site: bool = Field(False, description="let simulated labelers work over HTTP on a labelers' site")


class RoundEvaluationConfig(StageConfig):
    """The exam of a round's policies, with its measurements."""

    stage: ClassVar[str] = "evaluation"
    excluded_fields: ClassVar[frozenset[str]] = TRAINING_ONLY_FIELDS

    exam: ExamConfig = Field(description="the questions")


@dataclass(frozen=True, slots=True)
class Round:
    """Candidates, rankings, reward model and policies, once: files, and the configuration of each stage.

    A run of one round has its stages in the run directory, and prompts, candidates and rankings in `world/`. Of several
    rounds each has a directory with a stage directory for each of them.
    """

    name: str
    folder: Path
    seed: int  # of candidates and labelers
    index: int  # rounds before it
    prompts: Path  # whose completions are ranked
    ppo_prompts: Path
    candidates: CandidatesConfig
    rankings: Path
    heldout_rankings: Path
    reward: RewardConfig
    policies: Mapping[str, PPOConfig]
    is_control: bool = False


def build_stage_configs(config: RunConfig) -> dict[str, Any]:
    """Return the config of every stage by section, before the first stage starts, so that mistakes show at once.

    In the small world, those of candidates, reward model and PPO are in `rounds`.

    Raises:
        InputError: a section has an option that does not exist or has no effect.
    """
    base, start = config.out / "base", config.out / "start"
    files = get_input_files(config)
    processes = {"processes": config.processes}
    demonstrations = {"data": files["demonstrations"]}
    start_settings = {"base": config.base or str(base), "pretraining": files["corpus"]} | demonstrations
    stages: dict[str, Any] = {
        "exam": make_config(ExamConfig, config.stages.get("exam", {}), source="section exam"),
        "start": build_section(
            config, SFTConfig, "start", start, start_settings | (processes if config.has_files else {})
        ),
    }
    if config.base is None:
        text = {"corpus": files["corpus"]}
        stages["pretrain"] = build_section(config, PretrainConfig, "pretrain", base, text | processes)
    if config.has_files:
        return stages | build_file_stages(config)
    if "reward_pretrain" in config.stages:
        stages["reward_pretrain"] = build_reward_pretraining(config)
    stages["rounds"] = build_rounds(config)
    if config.overoptimization:
        stages["start_samples"] = build_start_samples(config, stages["rounds"][0])
        return stages
    sft_settings = {"base": str(base), "reward": stages["rounds"][0].reward.out} | demonstrations
    stages["sft"] = build_section(config, SFTConfig, "sft", config.out / "sft", sft_settings)
    stages["baselines"] = build_baselines(config, stages["rounds"][0], stages["sft"]) if config.baselines else {}
    return stages


def build_file_stages(config: RunConfig) -> dict[str, Any]:
    """Return the config of the stages after the start, of a run on your own files.

    With --baselines the reward model has the first half of the rankings, and the judge, the same stage, the second.
    """
    files = get_input_files(config)
    rankings = files["proxy_rankings" if config.baselines else "rankings"]
    reward = build_reward_stage(config, config.out, find_reward_base(config), rankings)
    best = BEST_POLICY if config.corpus else "ppo"
    names = [name for name in POLICIES if name == best or name in config.stages]
    policies = {name: build_policy_stage(config, name, config.out, files["ppo"]) for name in names}
    stages: dict[str, Any] = {"reward": reward, **policies}
    if config.baselines:
        update = {"out": config.out / JUDGE, "data": files["judge_rankings"]}
        stages |= {JUDGE: reward.model_copy(update=update)}
        stages["baselines"] = build_file_baselines(config, reward, policies[names[-1]])
    return stages


def build_file_baselines(config: RunConfig, reward: RewardConfig, ppo: PPOConfig) -> dict[str, Any]:
    """Return the config of every method on your own files: SFT on public tasks only where its section names data.

    DPO and expert iteration have the options of their commands.
    """
    files = get_input_files(config)
    settings = _method_settings(config, files["proxy_rankings"], reward.out, files["ppo"], ppo.max_tokens)
    settings["dpo"][1]["skip_bad"] = reward.skip_bad
    settings["expert_iteration"][1]["skip_bad"] = True  # PPO leaves prompts that are too long out, too
    settings["best_of_n"][1]["samples"] = _FILE_SAMPLES
    if "public_tasks" in config.stages:
        settings["public_tasks"] = SFTConfig, {"base": config.base or str(config.out / "base"), "keep": "last"}
    return {
        name: build_section(config, config_class, name, config.out / name, options)
        for name, (config_class, options) in settings.items()
    }


def build_baselines(config: RunConfig, round_: Round, sft: SFTConfig) -> dict[str, Any]:
    """Return the config of every method that PPO is compared with, by name: same start, rankings and prompts.

    SFT on public tasks starts from the base, as SFT does, and takes as many optimizer steps.
    """
    length = round_.policies["ppo"].max_tokens
    public = {"base": sft.base, "data": (config.out / "world" / "public_tasks.jsonl",), "keep": "last", "epochs": 1}
    public |= {
        name: value for name, value in config.stages.get("sft", {}).items() if name in ("batch", "lr", "dropout")
    }
    settings: _MethodSettings = {"public_tasks": (SFTConfig, public)}
    settings |= _method_settings(config, [round_.rankings], round_.reward.out, [round_.ppo_prompts], length)
    settings["dpo"][1].update(_DPO_DEFAULTS)
    settings["expert_iteration"][1].update(_EXPERT_ITERATION_DEFAULTS)
    stages = {
        name: build_section(config, config_class, name, config.out / name, options)
        for name, (config_class, options) in settings.items()
    }
    dpo: DPOConfig = stages["dpo"]
    return {**stages, "dpo": save_policies(dpo, dpo.epochs * config.ranking_prompts // dpo.batch)}


def save_policies(stage: _PolicyStage, steps: int, points: int = FRONTIER_POLICIES) -> _PolicyStage:
    """Return a stage of `steps` that saves `points` policies along its run, unless its section says how often."""
    return stage if stage.save_every else stage.model_copy(update={"save_every": max(1, steps // points)})


def _method_settings(
    config: RunConfig, rankings: Sequence[Path], reward: Path, prompts: Sequence[Path], max_tokens: int
) -> _MethodSettings:
    """Return class and settings of the methods that have PPO's start, rankings, reward model and prompts."""
    start = {"policy": str(config.out / "start")}
    scored = start | {"reward": str(reward), "max_tokens": max_tokens}
    return {
        "dpo": (DPOConfig, start | {"data": tuple(rankings)}),
        "expert_iteration": (ExpertIterationConfig, scored | {"prompts": tuple(prompts)}),
        "best_of_n": (BestOfNConfig, scored),
    }


def build_section(
    config: RunConfig, config_class: type[StageConfig], section: str, out: Path, settings: Mapping[str, Any]
) -> Any:
    """Return the config of a stage: common options, `settings` of the pipeline, then those of the file's section."""
    names = {"seed", "device", "resume", "track"} - config_class.excluded_fields
    common = {name: getattr(config, name) for name in sorted(names)} | {"out": out}
    if config.auto_bf16 and "memory" not in config_class.excluded_fields and uses_gpu(config.device):
        common["memory"] = ("bf16",)
    return make_config(config_class, common, settings, config.stages.get(section, {}), source=f"section {section}")


def uses_gpu(device: str) -> bool:
    """Return whether a value of --device means a GPU here."""
    from instructgpt.models.policy import pick_device  # loads torch

    return pick_device(device).type == "cuda"


def build_reward_stage(config: RunConfig, folder: Path, base: Path | str, rankings: Sequence[Path]) -> RewardConfig:
    settings: dict[str, Any] = {
        "base": str(base),
        "data": tuple(rankings),
        "demonstrations": get_input_files(config)["demonstrations"],
    }
    settings["processes"] = config.processes
    stage: RewardConfig = build_section(config, RewardConfig, "reward", folder / "reward", settings)
    return stage


def find_reward_base(config: RunConfig) -> str:
    """Return the model whose trunk the first reward model starts from."""
    if "reward_pretrain" in config.stages:
        return str(config.out / REWARD_BASE_FOLDER)
    if config.reward_base == "start":
        return str(config.out / "start")
    return config.base or str(config.out / "base")


def find_labeler_noise(config: RunConfig) -> float:
    """Return the standard deviation of simulated labelers' noise on an answer's utility."""
    return LABELER_NOISE if config.labeler_noise is None else config.labeler_noise


def build_reward_pretraining(config: RunConfig) -> PretrainConfig:
    """Return the config of the reward model's own trunk: as the base where its section says nothing else.

    It has the base's tokenizer, so that both read the same tokens.
    """
    if fixed := {"tokenizer", "vocabulary"} & config.stages["reward_pretrain"].keys():
        raise InputError(f"section reward_pretrain, {min(fixed)}: the trunk has the tokenizer of the base; drop it")
    shared = {name: value for name, value in config.stages.get("pretrain", {}).items() if name != "vocabulary"}
    inputs = {"corpus": get_input_files(config)["corpus"], "tokenizer": config.out / "base"}
    stage: PretrainConfig = build_section(
        config, PretrainConfig, "reward_pretrain", config.out / REWARD_BASE_FOLDER, shared | inputs
    )
    return stage


def build_start_samples(config: RunConfig, round_: Round) -> StartSamplesConfig:
    """Return the config of the start's samples that --overoptimization measures with, as long as PPO's."""
    length = build_policy_stage(config, "ppo", config.out, [round_.ppo_prompts]).max_tokens
    settings = {"policy": str(config.out / "start"), "max_tokens": length}
    stage: StartSamplesConfig = build_section(
        config, StartSamplesConfig, "start_samples", config.out / "start_samples", settings
    )
    return stage


def measured_policies(config: RunConfig) -> tuple[str, ...]:
    """Return the policies that a run trains: with --overoptimization the method it measures alone."""
    if config.overoptimization is None:
        return POLICIES
    return tuple(name for name in POLICIES if name == config.overoptimization)


def build_policy_stage(
    config: RunConfig, name: str, folder: Path, prompts: Sequence[Path], continued: Path | None = None
) -> PPOConfig:
    """Return the config of `ppo` or `ppo_ptx`, from the SFT start or continued from a policy with it as reference."""
    start = str(config.out / "start")
    settings: dict[str, Any] = {"policy": start, "reward": folder / "reward", "prompts": tuple(prompts)}
    if continued is not None:
        settings |= {"policy": str(continued), "reference": start}
    if name == "ppo_ptx":
        settings["pretraining"] = get_input_files(config)["corpus"]
    stage: PPOConfig = build_section(config, PPOConfig, name, folder / name, settings)
    if config.overoptimization:
        return save_policies(stage, stage.updates, _OVEROPTIMIZATION_POLICIES)
    return save_policies(stage, stage.updates) if config.baselines else stage


def build_rounds(config: RunConfig) -> list[Round]:
    """Return the rounds of a run, with the control last."""
    if config.rounds == 1:
        files, start = get_world_files(config.out / "world"), config.out / "start"
        settings = {"policy": str(start), "base": str(config.out / "base"), "prompts": files["reward"]}
        return [
            Round(
                name="",
                folder=config.out,
                seed=config.seed,
                index=0,
                prompts=files["reward"],
                ppo_prompts=files["ppo"],
                candidates=build_section(config, CandidatesConfig, "candidates", config.out / "world", settings),
                rankings=files["rankings"],
                heldout_rankings=files["heldout_rankings"],
                reward=build_reward_stage(config, config.out, find_reward_base(config), [files["rankings"]]),
                policies={
                    name: build_policy_stage(config, name, config.out, [files["ppo"]])
                    for name in measured_policies(config)
                },
            )
        ]
    rounds: list[Round] = []
    for number in range(1, config.rounds + 1):
        rounds.append(build_round(config, rounds, round_directory_name(number)))
    return rounds + ([build_control(config, rounds)] if config.one_round_control else [])


def build_round(config: RunConfig, earlier: Sequence[Round], name: str) -> Round:
    """Return the round after `earlier`."""
    folder = config.out / name
    rankings, ppo_prompts = folder / "rankings" / "rankings.jsonl", folder / "prompts" / "ppo.jsonl"
    reward_base, reward_rankings = find_reward_base(config), [*(round_.rankings for round_ in earlier), rankings]
    if earlier and config.round_reward == "continued":
        reward_base = str(earlier[-1].reward.out)
    if config.round_reward != "all":
        reward_rankings = [rankings]
    continued: Mapping[str, PPOConfig] = earlier[-1].policies if earlier and config.round_policy == "continued" else {}
    policies = {
        policy: build_policy_stage(config, policy, folder, [ppo_prompts], continued[policy].out if continued else None)
        for policy in POLICIES
    }
    return Round(
        name=name,
        folder=folder,
        seed=config.seed + _ROUND_SEEDS * len(earlier),
        index=len(earlier),
        prompts=folder / "prompts" / "reward.jsonl",
        ppo_prompts=ppo_prompts,
        candidates=build_candidates_stage(config, folder, earlier),
        rankings=rankings,
        heldout_rankings=folder / "rankings" / "heldout_rankings.jsonl",
        reward=build_reward_stage(config, folder, reward_base, reward_rankings),
        policies=policies,
    )


def build_candidates_stage(config: RunConfig, folder: Path, earlier: Sequence[Round]) -> CandidatesConfig:
    """Return the config of a round's candidates: by the newest policy, the one before, the SFT start and the base.

    Before the first round the newest policy is the SFT start, before the second it is the one before.
    """
    start = str(config.out / "start")
    sources = [("start", start)]
    sources += [(f"policy@{each.name}", str(each.policies[BEST_POLICY].out)) for each in earlier]
    settings: dict[str, Any] = {"base": str(config.out / "base"), "prompts": folder / "prompts" / "reward.jsonl"}
    settings |= dict(zip(("policy_name", "policy"), sources[-1], strict=True))
    if len(sources) > 1:
        settings["start"] = start
        settings |= dict(zip(("previous_name", "previous"), sources[-2], strict=True))
    stage: CandidatesConfig = build_section(config, CandidatesConfig, "candidates", folder / "candidates", settings)
    update: dict[str, Any] = {"seed": config.seed + _ROUND_SEEDS * len(earlier)}
    if len(sources) == 2:  # the policy before the newest is the start
        update |= {"previous": None, "start_share": stage.start_share + stage.previous_share}
    return stage.model_copy(update=update)


def build_control(config: RunConfig, rounds: Sequence[Round]) -> Round:
    """Return one round with the prompts and as many rankings as `rounds`, all of completions that round 1 could have.

    It has the rankings of round 1; its own are of completions by the SFT start for the prompts of the later rounds.
    Its policies start as round 1's and see the prompts of the last round, or where rounds continue those of all rounds
    and as many episodes.
    """
    name = control_directory_name(len(rounds))
    folder, first, last = config.out / name, rounds[0], rounds[-1]
    rankings = folder / "rankings" / "rankings.jsonl"
    candidates = first.candidates.model_copy(
        update={
            "out": folder / "candidates",
            "prompts": folder / "prompts" / "reward.jsonl",
            "seed": config.seed + _ROUND_SEEDS * len(rounds),
        }
    )
    ppo_prompts, policies = [last.ppo_prompts], {}
    if config.round_policy == "continued":
        ppo_prompts = [each.ppo_prompts for each in rounds]
    for policy in POLICIES:
        stage = build_policy_stage(config, policy, folder, ppo_prompts)
        policies[policy] = stage.model_copy(update={"episodes": stage.episodes * len(ppo_prompts)})
    return Round(
        name=name,
        folder=folder,
        seed=candidates.seed,
        index=len(rounds),
        prompts=candidates.prompts,
        ppo_prompts=last.ppo_prompts,
        candidates=candidates,
        rankings=rankings,
        heldout_rankings=first.heldout_rankings,
        reward=build_reward_stage(config, folder, find_reward_base(config), [first.rankings, rankings]),
        policies=policies,
        is_control=True,
    )


def check_rounds_extend(config: RunConfig) -> None:
    """Raise InputError where a run that stands there cannot go on to these rounds: more can be added to several."""
    recorded = recorded_rounds(config)
    if recorded is None or not config.resume or recorded == config.rounds or 1 < recorded < config.rounds:
        return
    if recorded > config.rounds > 1:
        problem = f"has {recorded} rounds already; give --rounds {recorded} or more"
    else:
        problem = f"was begun with --rounds {recorded}, whose directories are not those of --rounds {config.rounds}"
    raise InputError(f"{config.out}: {problem}, or choose another --out")


def has_new_rounds(config: RunConfig) -> bool:
    """Return whether a finished run lacks rounds, the control or the baselines."""
    settings = (read_run_record(config.out) or {}).get("config", {})
    if config.baselines and not settings.get("baselines"):
        return True
    lacks_control = config.one_round_control and not settings.get("one_round_control")
    return lacks_control or (recorded_rounds(config) or config.rounds) < config.rounds


def recorded_rounds(config: RunConfig) -> int | None:
    """Return the rounds of the run that stands in the run directory, None without one."""
    record = read_run_record(config.out)
    is_run = record is not None and record.get("stage") == RunConfig.stage
    return int(record["config"].get("rounds", 1)) if record is not None and is_run else None


def get_input_files(config: RunConfig) -> dict[str, tuple[Path, ...]]:
    """Return the input files of the stages, which the small world may still have to write."""
    if not config.has_files:
        return {name: (file,) for name, file in get_world_files(config.out / "world").items()}
    names = ("corpus", "demonstrations", "rankings")
    files = {name: tuple(config.data / path for path in getattr(config, name)) for name in names}
    prompts = tuple(config.data / path for path in config.prompts) or files["demonstrations"]
    run_files = {"ppo": "prompts/training", "validation": "prompts/validation", "test": "prompts/test"}
    run_files |= {"proxy_rankings": "rankings/proxy", "judge_rankings": "rankings/judge"}
    return files | {"prompts": prompts} | {name: (config.out / f"{path}.jsonl",) for name, path in run_files.items()}


def get_world_files(folder: Path) -> dict[str, Path]:
    names = ("corpus", "demonstrations", "rankings", "heldout_rankings", "reward", "ppo", "validation", "test")
    return {name: folder / f"{name}.jsonl" for name in names}
