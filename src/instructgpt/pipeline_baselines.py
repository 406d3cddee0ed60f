"""`run --baselines`: the methods that PPO is compared with, and the frontier.

All start where PPO starts, and have its rankings, reward model and prompts; only SFT on public tasks has data of its
own. Each is a stage directory of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from instructgpt.baselines import dpo, expert_iteration
from instructgpt.baselines.configs import ExpertIterationConfig
from instructgpt.config import StageConfig
from instructgpt.distributed.launch import ProcessJob, run_processes
from instructgpt.evaluate import world_exam
from instructgpt.evaluate.best_of_n_policy import BestOfN
from instructgpt.evaluate.configs import BestOfNConfig, ExamConfig
from instructgpt.evaluate.frontier import FrontierPolicy, frontier_prompts, measure_frontier, sample_start
from instructgpt.evaluate.frontier_judges import WorldJudge
from instructgpt.evaluate.rounds import stage_flops
from instructgpt.models.policy import load_tokenizer, pick_device
from instructgpt.models.reward_model import load_reward_model
from instructgpt.records import Prompt, read_records, write_records
from instructgpt.run.configs import RunConfig
from instructgpt.run.directory import RunDirectory, console, read_jsonl_log, read_run_record
from instructgpt.sampling.cli import ScoredInput
from instructgpt.stage_configs import Round
from instructgpt.train import sft
from instructgpt.train.configs import DPOConfig, PPOConfig, SFTConfig
from instructgpt.world import World
from instructgpt.world.public_tasks import demonstrate_public_tasks


def train_baselines(config: RunConfig, world: World, stages: Mapping[str, Any]) -> None:
    """Train every method of `--baselines`, and sample the start for best of n; finished ones are skipped."""
    write_public_tasks(config, world, stages)
    names = ("expert_iteration", "best_of_n", "dpo", "public_tasks")  # the longest first
    prompts = frontier_prompts(stages["baselines"]["best_of_n"], world)
    run_processes(config.processes, [build_baseline_job(stages["baselines"][name], prompts) for name in names])


def write_public_tasks(config: RunConfig, world: World, stages: Mapping[str, Any]) -> None:
    """Write the public tasks with their answers, unless they are there."""
    public = stages["baselines"]["public_tasks"]
    (data,) = public.data
    if not data.exists():
        # As many optimizer steps as SFT on labelers' demonstrations takes.
        count = config.demonstration_prompts * stages["sft"].epochs // public.epochs
        write_records(data, demonstrate_public_tasks(world, max(count, public.batch)))


def build_baseline_job(stage: StageConfig, prompts: Mapping[str, Sequence[Prompt]]) -> ProcessJob:
    """Return the function that runs the stage of a method, with its arguments. `prompts`: of the frontier, by split."""
    if isinstance(stage, BestOfNConfig):
        return sample_best_of_n, (stage, prompts)
    mains: dict[str, Callable[..., Any]] = {
        SFTConfig.stage: sft.main,
        DPOConfig.stage: dpo.main,
        ExpertIterationConfig.stage: expert_iteration.main,
    }
    return mains[stage.stage], (stage,)


def sample_best_of_n(config: BestOfNConfig, prompts: Mapping[str, Sequence[Prompt]]) -> None:
    """Run the stage of best of n, which trains nothing."""
    run = RunDirectory.open(config, {"policy": config.policy, "reward": config.reward})
    if not run.is_finished:
        run.create()
        sample_start(config, prompts)
        run.finish(lambda _: None)


def examine_best_of_n(config: BestOfNConfig, out: Path, seed: int, exam: ExamConfig) -> None:
    """Put the exam to best of n of the start and write its answers, unless they are there."""
    if out.exists():
        return
    choose = BestOfN(load_reward_model(config.reward, pick_device(config.device)), config.n)
    world_exam.run_exam("best_of_n", Path(config.policy), out, World(seed), exam, seed, config.device, choose=choose)
    console.print("[bold]evaluation[/] best_of_n has finished its exam")


def draw_frontier(config: RunConfig, world: World, round_: Round, methods: Mapping[str, Any]) -> None:
    """Measure all points of the frontier and write them to `evaluation/frontier.jsonl`, unless they are there."""
    out = round_.folder / "evaluation" / "frontier.jsonl"
    if out.exists() and config.resume:
        return
    best_of_n: BestOfNConfig = methods["best_of_n"]
    policies = list_frontier_policies(round_.policies, round_.reward.out, methods)
    judge, prompts = WorldJudge(world, best_of_n.seed + 1), frontier_prompts(best_of_n, world)
    measure_frontier(best_of_n, judge, prompts, policies, stage_flops(round_.reward.out), out)


def list_frontier_policies(
    ppo_stages: Mapping[str, PPOConfig], reward: Path, methods: Mapping[str, Any]
) -> list[FrontierPolicy]:
    """Return the policies along the runs of PPO, DPO and expert iteration, in the order of each."""
    reward_flops = stage_flops(reward)
    policies = [policy for name, stage in ppo_stages.items() for policy in list_policies(name, stage.out)]
    policies = [_add_flops(policy, reward_flops) for policy in policies]
    policies += list_policies("dpo", methods["dpo"].out)
    return policies + list_iterations(methods["expert_iteration"].out, reward, reward_flops)


def list_policies(method: str, folder: Path) -> list[FrontierPolicy]:
    """Return the policies that a stage saved along its run, with their share of its FLOPs, and the final one."""
    record = read_run_record(folder) or {}
    flops, saved = stage_flops(folder), record.get("policies", [])
    last = _count_steps(folder)
    points = [
        FrontierPolicy(method, f"{method}@{entry['step']}", folder / entry["path"], flops * entry["step"] / last)
        for entry in saved
        if entry["step"] < last
    ]
    return [*points, FrontierPolicy(method, method, folder, flops)]


def _count_steps(folder: Path) -> int:
    """Return the steps of a finished stage, by its log."""
    return max(int(row["step"]) for row in read_jsonl_log(folder / "metrics.jsonl"))


def list_iterations(folder: Path, reward: Path, reward_flops: float) -> list[FrontierPolicy]:
    """Return the policy of every round of expert iteration, with the FLOPs of sampling, scoring and fine-tuning."""
    policies, flops = list[FrontierPolicy](), reward_flops
    reward_parameters = float((read_run_record(reward) or {}).get("parameters", 0))
    rounds = sorted(folder.glob("round-*"), key=lambda path: int(path.name.removeprefix("round-")))
    for part in rounds:
        policy = part / "policy"
        parameters = float((read_run_record(policy) or {}).get("parameters", 0))
        encode = load_tokenizer(policy).encode_example
        tokens = sum(
            len(encode(sample, sample.completion)) for sample in read_records(ScoredInput, part / "scored.jsonl")
        )
        flops += stage_flops(policy) + 2.0 * tokens * (parameters + reward_parameters)
        policies.append(FrontierPolicy("expert_iteration", f"expert_iteration@{part.name}", policy, flops))
    return policies


def _add_flops(policy: FrontierPolicy, flops: float) -> FrontierPolicy:
    return FrontierPolicy(policy.method, policy.label, policy.folder, policy.training_flops + flops)
