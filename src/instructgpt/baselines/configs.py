"""Options of `best`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from instructgpt.config import CommandConfig


class BestConfig(CommandConfig):
    stage: ClassVar[str] = "best"

    data: tuple[Path, ...] = Field(description="files of scored completions, as 'score' writes them")
    n: int = Field(ge=1, description="completions of each prompt to choose from: the first N of the files")
    out: Path = Field(description="file of demonstrations to write")
    skip_bad: bool = Field(
        False, description="skip bad lines and prompts with fewer than N completions, and count them"
    )

    def ineffective_options(self) -> Iterator[str]:
        if self.n == 1:
            yield "--n 1 chooses nothing; give the number of completions that each prompt has"
