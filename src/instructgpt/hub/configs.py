"""Options of `push`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from instructgpt.config import CommandConfig


class PushConfig(CommandConfig):
    stage: ClassVar[str] = "push"

    directory: Path = Field(description="directory of a finished stage: a policy or a reward model")
    repo: str = Field(description="repository on the hub, ORG/NAME; it is created if it is not there")
    license: str = Field(
        description="license of the weights by the hub's name, such as apache-2.0; also the base's terms"
    )
    base_model: str | None = Field(None, description="hub name of the base model; default: the one in run.json")
    results: Path | None = Field(
        None,
        description="results.json whose rows about this model go into the card; default: the one beside the directory",
    )
    private: bool = Field(False, description="create the repository as private")
    dry_run: bool = Field(False, description="print card and files, and send nothing")
