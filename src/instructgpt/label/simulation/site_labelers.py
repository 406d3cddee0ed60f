"""Labelers behind a site: the protocol of `records.Labelers`, done by simulated people over HTTP on a site in a process of its own.

What comes back is what the site exported, so that a pipeline that uses these labelers uses the site's files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from instructgpt.label.client import OwnerClient
from instructgpt.label.simulation.labelers import (
    SimulatedLabelerBehavior,
    SimulatedSiteLabeler,
    make_simulated_labelers,
    register_labelers,
    run_simulated_labelers,
)
from instructgpt.label.simulation.server import SiteServer
from instructgpt.records import Cohort, Completion, Demonstration, Prompt, Ranking, read_records
from instructgpt.world import World

_MIN_LABELERS = 6
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
        rows = [prompt.to_dict() for prompt in prompts]
        with TemporaryDirectory() as folder:
            self._run_batch("demonstrate", {"prompts": rows, "policy": self._batch_policy(1)}, Path(folder))
            return read_records(Demonstration, Path(folder) / "demonstrations.jsonl")

    def rank(self, candidates: Sequence[Sequence[Completion]]) -> list[Ranking]:
        """`per_prompt` rankings of the completions of each different prompt, at most nine different texts; ratings and labels too."""
        rows = [completion.to_dict() for completions in candidates for completion in completions]
        with TemporaryDirectory() as folder:
            self._run_batch("rank", {"completions": rows, "policy": self._batch_policy(self.per_prompt)}, Path(folder))
            return read_records(Ranking, Path(folder) / "rankings.jsonl")

    def _batch_policy(self, overlap: int) -> dict[str, Any]:
        return {
            "overlap": overlap,
            "cohort_overlap": overlap,
            "cohort_share": 0,
            "gold_share": 0,
            "repeat_share": 0,
            "seed": self.seed,
        }

    def _run_batch(self, kind: str, payload: Mapping[str, Any], out: Path) -> None:
        """Make the batch, have everybody work until it is done, close it, export it."""
        name = f"{kind} {self.cohort} {hashlib.sha256(repr(payload).encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
        with SiteServer(self.folder) as server, server.connect() as owner_client:
            batch = self._open_or_create_batch(owner_client, name, kind, payload)
            simulators = make_simulated_labelers(
                self.world, self.cohort, max(_MIN_LABELERS, self.per_prompt), self.seed
            )
            clients = register_labelers(server.base_url, owner_client, simulators, self.seed, patience=60)
            try:
                run_simulated_labelers(
                    [
                        SimulatedSiteLabeler(client, simulator, SimulatedLabelerBehavior(draft_rate=0, seed=self.seed))
                        for client, simulator in zip(clients, simulators, strict=True)
                    ]
                )
            finally:
                for client in clients:
                    client.close()
            owner_client.close_batch(batch["id"])
            use = "training" if self.purpose == "training" else "evaluation"
            owner_client.export(
                out, filter={"use": use, "batches": [name]}, files=["rankings" if kind == "rank" else "demonstrations"]
            )

    def _open_or_create_batch(
        self, owner_client: OwnerClient, name: str, kind: str, payload: Mapping[str, Any]
    ) -> dict[str, Any]:
        for batch in owner_client.list_batches():
            if batch["name"] == name:
                return owner_client.open_batch(batch["id"])
        return owner_client.create_batch(name, kind, purpose=self.purpose, cohort=self.cohort, open=True, **payload)
