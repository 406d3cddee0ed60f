"""Labelers behind a site: the protocol of `records.Labelers`, done by simulated people over HTTP on a site in a process of its own.

What comes back is what the site exported, so that a pipeline that uses these labelers uses the site's files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from instructgpt.label.client import Service
from instructgpt.label.simulation.labelers import Manners, Worker, join, minds, work_together
from instructgpt.label.simulation.server import Server
from instructgpt.records import Cohort, Completion, Demonstration, Prompt, Ranking, read_records
from instructgpt.world import World

PEOPLE = 6
"""How many work at the same time, where a prompt does not need more."""


class SiteLabelers:
    """Simulated people of a cohort at a site. The same work is not done twice: a batch that is there already is gone on with.

    Args:
        folder: the site's; it is made where it is not there.
        per_prompt: how many of them rank each list of completions.
        purpose: held-out people only ever work for evaluation; training people for either.
    """

    def __init__(
        self,
        folder: Path,
        world: World,
        cohort: Cohort = "training",
        per_prompt: int = 1,
        seed: int = 0,
        purpose: Literal["training", "evaluation"] = "training",
    ) -> None:
        self.folder, self.world, self.cohort, self.per_prompt, self.seed = folder, world, cohort, per_prompt, seed
        self.purpose = "evaluation" if cohort == "heldout" else purpose

    def demonstrate(self, prompts: Sequence[Prompt]) -> list[Demonstration]:
        """One demonstration of each different prompt."""
        given = [prompt.row() for prompt in prompts]
        with TemporaryDirectory() as folder:
            self._work("demonstrate", {"prompts": given, "policy": self._policy(1)}, Path(folder))
            return read_records(Demonstration, Path(folder) / "demonstrations.jsonl")

    def rank(self, candidates: Sequence[Sequence[Completion]]) -> list[Ranking]:
        """`per_prompt` rankings of the completions of each different prompt, at most nine different texts; ratings and labels too."""
        given = [completion.row() for completions in candidates for completion in completions]
        with TemporaryDirectory() as folder:
            self._work("rank", {"completions": given, "policy": self._policy(self.per_prompt)}, Path(folder))
            return read_records(Ranking, Path(folder) / "rankings.jsonl")

    def _policy(self, overlap: int) -> dict[str, Any]:
        return {"overlap": overlap, "cohort_overlap": overlap, "cohort_share": 0, "gold_share": 0, "repeat_share": 0, "seed": self.seed}

    def _work(self, kind: str, given: Mapping[str, Any], out: Path) -> None:
        """Make the batch, have everybody work until it is done, close it, export it."""
        name = f"{kind} {self.cohort} {hashlib.sha256(repr(given).encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
        with Server(self.folder) as server, server.service() as service:
            batch = self._batch(service, name, kind, given)
            crowd = minds(self.world, self.cohort, max(PEOPLE, self.per_prompt), self.seed)
            joined = join(server.address, service, crowd, self.seed, patience=60)
            try:
                work_together([Worker(me, mind, Manners(drafts=0, seed=self.seed)) for me, mind in zip(joined, crowd, strict=True)])
            finally:
                for me in joined:
                    me.close()
            service.close_batch(batch["id"])
            use = "training" if self.purpose == "training" else "evaluation"
            service.export(out, filter={"use": use, "batches": [name]}, files=["rankings" if kind == "rank" else "demonstrations"])

    def _batch(self, service: Service, name: str, kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
        for batch in service.batches():
            if batch["name"] == name:
                return service.open_batch(batch["id"])
        return service.make_batch(name, kind, purpose=self.purpose, cohort=self.cohort, open=True, **given)
