"""Policies saved during training (`--save-every`): plain model directories in `policies/`, listed in run.json.

They belong to the run but not to its state: a run that resumes removes the later ones and saves them again.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from instructgpt.data.tokenization import PromptTokenizer
from instructgpt.errors import InputError
from instructgpt.formatting import format_si
from instructgpt.models.loading import saved_dtype
from instructgpt.models.policy import count_parameters, save_policy
from instructgpt.models.sharding import full_model_on_rank0
from instructgpt.run.directory import RunDirectory
from instructgpt.train.configs import DPOConfig, PPOConfig, SFTConfig


class SavedPolicies:
    """The policies of a run at every so many units: steps, or epochs of `sft`."""

    def __init__(
        self,
        run: RunDirectory,
        config: SFTConfig | DPOConfig | PPOConfig,
        model: Any,
        completed: int,
        total: int,
        unit: str,
    ) -> None:
        """Remove policies that were saved after the checkpoint that the run resumes from, and look at the disk.

        Args:
            model: the policy, for its size.
            completed: units at that checkpoint.
            total: units in the whole run.
            unit: what is counted, in the names of the directories.

        Raises:
            InputError: the disk has no room for those that are still to come, and for the run's own model.
        """
        self.run, self.interval, self.limit, self.unit = run, config.save_every, config.save_limit, unit
        self.folder = run.directory / "policies"
        if run.is_main_process:
            self._start(model, completed, total)

    def _start(self, model: Any, completed: int, total: int) -> None:
        for folder in self._folders():
            if self._number(folder) > completed:
                shutil.rmtree(folder)
        self._list()
        if not self.interval:
            return
        count = total // self.interval - completed // self.interval
        if self.limit:
            count = min(count, max(1, self.limit + 1 - len(self._folders())))  # one more until the oldest is removed
        size = count_parameters(model) * saved_dtype(model).itemsize
        free = shutil.disk_usage(self.run.directory).free
        if (count + 1) * size > free:
            needed, available = format_si((count + 1) * size, "B"), format_si(free, "B")
            raise InputError(
                f"--save-every {self.interval}: {count} policies and the model of the run need "
                f"{needed} in {self.run.directory}, where {available} are free; keep "
                "fewer with --save-limit, or choose another --out"
            )

    def is_due(self, completed: int) -> bool:
        return self.interval > 0 and completed % self.interval == 0

    def save(self, model: Any, tokenizer: PromptTokenizer, completed: int) -> None:
        """Save the policy if it is due, and remove the oldest beyond the limit. All ranks call this."""
        if not self.is_due(completed):
            return
        full_model = full_model_on_rank0(model)
        if not self.run.is_main_process:
            return
        folder = self.folder / f"{self.unit}-{completed:08d}"
        self.run.save_model(
            folder, lambda partial: save_policy(full_model, tokenizer, partial), checkpoint={self.unit: completed}
        )
        for old in self._folders()[: -self.limit] if self.limit else ():
            shutil.rmtree(old)
        self._list()
        self.run.update_record()

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.unit}-*")) if self.folder.is_dir() else []

    def _number(self, folder: Path) -> int:
        return int(folder.name.rpartition("-")[2])

    def _list(self) -> None:
        entries = [{"path": f"policies/{folder.name}", self.unit: self._number(folder)} for folder in self._folders()]
        if entries:
            self.run.summary["policies"] = entries
        else:
            self.run.summary.pop("policies", None)
