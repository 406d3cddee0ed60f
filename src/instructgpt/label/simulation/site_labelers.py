"""The `records.Labelers` protocol on a site: simulated labelers work over HTTP; results are the site's exports."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from instructgpt.label.client import OwnerClient
from instructgpt.label.simulation import labelers
from instructgpt.label.simulation.labelers import SimulatedLabelerBehavior
from instructgpt.label.simulation.server import SiteServer
from instructgpt.records import Cohort, Completion, Demonstration, Prompt, Ranking, read_records
from instructgpt.world import World

_MIN_LABELERS = 6


class SiteLabelers:
    """Simulated labelers of one cohort on a site. Equal work is the same batch, so an interrupted call resumes it.

    Args:
        folder: folder of the site; created if missing.
        per_prompt: labelers who rank each list of completions.
        purpose: purpose of the training cohort's batches; held-out labelers work for evaluation only.
        round_name: put before the names of batches.
    """

    def __init__(
        self,
        folder: Path,
        world: World,
        cohort: Cohort = "training",
        per_prompt: int = 1,
        seed: int = 0,
        purpose: Literal["training", "evaluation"] = "training",
        round_name: str = "",
    ) -> None:
        self.folder, self.world, self.cohort, self.per_prompt, self.seed = folder, world, cohort, per_prompt, seed
        self.purpose = "evaluation" if cohort == "heldout" else purpose
        self.round_name = round_name

    def demonstrate(self, prompts: Sequence[Prompt]) -> list[Demonstration]:
        """Return one demonstration per distinct prompt."""
        rows = [prompt.to_dict() for prompt in prompts]
        with TemporaryDirectory() as folder:
            self._run_batch("demonstrate", {"prompts": rows, "policy": self._batch_policy(1)}, Path(folder))
            return read_records(Demonstration, Path(folder) / "demonstrations.jsonl")

    def rank(self, candidates: Sequence[Sequence[Completion]]) -> list[Ranking]:
        """Return `per_prompt` rankings per distinct prompt, of at most nine distinct texts, with ratings and labels."""
        rows = [completion.to_dict() for completions in candidates for completion in completions]
        with TemporaryDirectory() as folder:
            self._run_batch("rank", {"completions": rows, "policy": self._batch_policy(self.per_prompt)}, Path(folder))
            return read_records(Ranking, Path(folder) / "rankings.jsonl")

    def _batch_policy(self, overlap: int) -> dict[str, Any]:
        shares = {"cohort_share": 0, "gold_share": 0, "repeat_share": 0}
        return {"overlap": overlap, "cohort_overlap": overlap, **shares, "seed": self.seed}

    def _run_batch(self, kind: str, payload: Mapping[str, Any], out: Path) -> None:
        """Create the batch, or open an existing one; run labelers until it is done; close and export it."""
        name = f"{self.round_name} " if self.round_name else ""
        name += (
            f"{kind} {self.cohort} {hashlib.sha256(repr(payload).encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
        )
        with SiteServer(self.folder) as server, server.connect() as owner_client:
            batch = self._open_or_create_batch(owner_client, name, kind, payload)
            count = max(_MIN_LABELERS, self.per_prompt)
            behavior = SimulatedLabelerBehavior(draft_rate=0, seed=self.seed)
            simulators = labelers.make_simulated_labelers(self.world, self.cohort, count, self.seed)
            workers = labelers.register_labelers(server.base_url, owner_client, simulators, behavior, patience=60)
            labelers.run_simulated_labelers(workers)
            owner_client.close_batch(batch["id"])
            file = "rankings" if kind == "rank" else "demonstrations"
            export_filter = {"use": self.purpose, "batches": [name], "since": batch["created_at"]}
            owner_client.export(out, filter=export_filter, files=[file])

    def _open_or_create_batch(
        self, owner_client: OwnerClient, name: str, kind: str, payload: Mapping[str, Any]
    ) -> dict[str, Any]:
        for batch in owner_client.list_batches():
            if batch["name"] == name:
                return owner_client.open_batch(batch["id"])
        return owner_client.create_batch(name, kind, purpose=self.purpose, cohort=self.cohort, open=True, **payload)
