"""The commands of `instructgpt`: where their options and functions are. Nothing of them is imported here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from instructgpt.config import CommandConfig


@dataclass(frozen=True, slots=True)
class Command:
    name: str
    config: str
    """`PART.CLASS`: the config class, in `instructgpt.PART.configs`, which imports no torch."""
    function: str
    """`MODULE` below `instructgpt`, whose `main` runs the command, or `MODULE:FUNCTION`."""
    purpose: str
    positional: str | None = None
    wraps: tuple[str, ...] = ()
    """Commands whose command line may follow this command's name. Their config is passed as the field `planned`."""
    loads_torch: bool = True
    """Whether the function's module imports PyTorch, which takes seconds."""
    starts_training: bool = False
    """Whether a command that does not load PyTorch itself starts processes that do."""

    @property
    def needs_torch(self) -> bool:
        return self.loads_torch or self.starts_training

    @property
    def config_class(self) -> type[CommandConfig]:
        part, _, name = self.config.rpartition(".")
        config_class: type[CommandConfig] = getattr(importlib.import_module(f"instructgpt.{part}.configs"), name)
        return config_class

    def resolve_function(self) -> Callable[[Any], object]:
        """Import the command's module and return its function."""
        module, _, name = self.function.partition(":")
        function: Callable[[Any], object] = getattr(importlib.import_module(f"instructgpt.{module}"), name or "main")
        return function


_TRUTHFULQA_JUDGE = "evaluate.judges.truthfulqa_judge"

COMMANDS = (
    Command("run", "run.RunConfig", "pipeline", "run the whole paper with simulated labelers"),
    Command("pretrain", "train.PretrainConfig", "train.pretrain", "pretrain a small base model from scratch"),
    Command("sft", "train.SFTConfig", "train.sft", "fine-tune a model on demonstrations"),
    Command("reward", "train.RewardConfig", "train.reward", "train a reward model on rankings"),
    Command(
        "ppo",
        "train.PPOConfig",
        "train.ppo",
        "train a policy with PPO against a reward model (PPO-ptx: --pretraining)",
    ),
    Command(
        "export",
        "train.ExportConfig",
        "train.export",
        "write a training checkpoint as a plain model directory",
        positional="checkpoint",
    ),
    Command("sample", "sampling.SampleConfig", "sampling.cli:sample_completions", "sample completions of prompts"),
    Command("score", "sampling.ScoreConfig", "sampling.cli:score_completions", "score completions with a reward model"),
    Command(
        "best",
        "baselines.BestConfig",
        "baselines.best_of_n",
        "write the best of N scored completions as demonstrations (rejection sampling)",
    ),
    Command(
        "expert-iteration",
        "baselines.ExpertIterationConfig",
        "baselines.expert_iteration",
        "sample, choose by a reward model and fine-tune, in rounds",
    ),
    Command("dpo", "train.DPOConfig", "baselines.dpo", "train a policy on rankings by direct preference optimization"),
    Command(
        "sweep",
        "sweep.SweepConfig",
        "sweep.cli",
        "run the pipeline with every combination of some options, on any number of machines",
        positional="recipe",
        loads_torch=False,
        starts_training=True,
    ),
    Command(
        "scaling-laws",
        "sweep.ScalingLawsConfig",
        "sweep.scaling_laws_cli",
        "fit the scaling laws of reward-model over-optimization to a sweep",
        positional="run",
        loads_torch=False,
    ),
    Command(
        "report",
        "run.ReportConfig",
        "report.cli",
        "write the report of a run directory",
        positional="run",
        loads_torch=False,
    ),
    Command(
        "cost",
        "run.CostConfig",
        "report.cost_cli",
        "print what runs cost: FLOPs, hours, energy, labels, money",
        positional="run",
        loads_torch=False,
    ),
    Command(
        "evaluate",
        "evaluate.EvaluateConfig",
        "evaluate.cli",
        "run the paper's evaluations on models",
        positional="names",
    ),
    Command("judge toxicity", "evaluate.ToxicityConfig", "evaluate.toxicity.classifier", "train a toxicity scorer"),
    Command("judge refusal", "evaluate.RefusalConfig", "evaluate.refusal.training", "train a refusal detector"),
    Command(
        "judge truth",
        "evaluate.JudgeConfig",
        f"{_TRUTHFULQA_JUDGE}:train_truth",
        "train a judge of truthfulness",
    ),
    Command(
        "judge info",
        "evaluate.JudgeConfig",
        f"{_TRUTHFULQA_JUDGE}:train_info",
        "train a judge of informativeness",
    ),
    Command(
        "plan",
        "plan.PlanConfig",
        "pipeline_plan",
        "predict memory and time of a stage or a run, or compare a finished stage with the prediction",
        positional="run",
        wraps=("pretrain", "sft", "reward", "ppo", "run"),
    ),
    Command("doctor", "run.DoctorConfig", "doctor.cli", "diagnose a run and suggest fixes", positional="run"),
    Command(
        "watch",
        "run.WatchConfig",
        "watch",
        "follow a run: progress, curves, samples, findings",
        positional="run",
    ),
    Command(
        "push",
        "hub.PushConfig",
        "hub.push",
        "send a finished model to the Hugging Face hub, with its model card",
        positional="directory",
        loads_torch=False,
    ),
    Command(
        "from-trl",
        "trl.FromTRLConfig",
        "trl.convert",
        "convert a configuration of a TRL trainer",
        positional="trl_config",
        loads_torch=False,
    ),
    Command(
        "data import",
        "data.ImportConfig",
        "data.cli:import_datasets",
        "convert other formats to ours and back",
        loads_torch=False,
    ),
    Command(
        "data clean",
        "data.CleanConfig",
        "data.cli:clean_datasets",
        "deduplicate, cap users, filter PII",
        loads_torch=False,
    ),
    Command(
        "data mix",
        "data.MixConfig",
        "data.cli:mix_datasets",
        "mix in refusals by share, with a system text",
        loads_torch=False,
    ),
    Command(
        "data split",
        "data.SplitConfig",
        "data.cli:split_datasets",
        "split by user into train, validation, test",
        loads_torch=False,
    ),
    Command(
        "data stats",
        "data.StatsConfig",
        "data.cli:print_dataset_stats",
        "print the paper's tables for a file",
        loads_torch=False,
    ),
    Command(
        "label init",
        "label.InitConfig",
        "label.cli.serve:init",
        "create a labelers' site and print its setup link",
        loads_torch=False,
    ),
    Command("label serve", "label.ServeConfig", "label.cli.serve:serve", "serve a labelers' site", loads_torch=False),
    Command(
        "label reset-link",
        "label.ResetLinkConfig",
        "label.cli.reset_link:reset_link",
        "print a link that sets a new password",
        loads_torch=False,
    ),
    Command(
        "label import",
        "label.LabelImportConfig",
        "label.cli.data:import_into_site",
        "import data into a site",
        loads_torch=False,
    ),
    Command(
        "label export",
        "label.LabelExportConfig",
        "label.cli.data:export_from_site",
        "export data from a site",
        loads_torch=False,
    ),
    Command(
        "label backup",
        "label.LabelBackupConfig",
        "label.cli.data:backup_site",
        "back up a site's database",
        loads_torch=False,
    ),
    Command(
        "label simulate",
        "label.SimulateConfig",
        "label.simulation.labelers",
        "run simulated labelers on a site",
        loads_torch=False,
    ),
    Command(
        "label batch",
        "label.BatchConfig",
        "label.cli.batch",
        "create a batch on a site from files or from models",
        loads_torch=False,
    ),
    Command("chat", "serve.ChatConfig", "serve.chat", "talk to models on a terminal, side by side", loads_torch=False),
    Command("serve", "serve.EndpointConfig", "serve.cli", "serve models to any OpenAI client"),
    Command(
        "serve keys",
        "serve.ServeKeysConfig",
        "serve.administration:manage_keys",
        "add, approve, revoke or list the keys of an endpoint",
        positional="action",
        loads_torch=False,
    ),
    Command(
        "serve guard",
        "serve.ServeGuardConfig",
        "serve.guard.cli",
        "measure guards on labeled texts, count what they blocked, write their policy into model cards",
        positional="action",
    ),
    Command(
        "serve log",
        "serve.ServeLogConfig",
        "serve.administration:manage_log",
        "count or delete the requests that an endpoint has kept",
        positional="action",
        loads_torch=False,
    ),
    Command(
        "completion",
        "run.CompletionConfig",
        "completion",
        "print a script that completes commands and options in bash, zsh or fish",
        positional="shell",
        loads_torch=False,
    ),
)
