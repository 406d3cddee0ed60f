"""Options of `from-trl`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from instructgpt.config import CommandConfig

TRLTrainer = Literal["sft", "reward", "dpo", "ppo"]


class FromTRLConfig(CommandConfig):
    stage: ClassVar[str] = "from-trl"

    trl_config: Path = Field(description="configuration file of a TRL trainer, as `trl sft --config` reads it, or JSON")
    trainer: TRLTrainer = Field(description="whose configuration it is: SFTTrainer, RewardTrainer, DPOTrainer …")
    gpus: int = Field(1, ge=1, description="devices that the TRL script ran on; its batch counts each device")
    out: Path = Field(description="YAML file to write, for --config")
