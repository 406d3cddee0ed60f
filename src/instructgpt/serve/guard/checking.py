"""What the guards of a server decide: whether a prompt may reach the model, and a completion the client."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from instructgpt.errors import InputError, RunError, one_line
from instructgpt.run.use_policy import UsePolicy, find_high_stakes_domain
from instructgpt.serve.errors import APIError
from instructgpt.serve.guard.counts import POLICY_GUARD, GuardCounts
from instructgpt.serve.guard.scorers import GuardedText, GuardScorer, load_guard_scorer
from instructgpt.serve.guard.settings import GuardFileSettings, GuardSettings
from instructgpt.serve.keys import APIKey

_log = logging.getLogger("instructgpt.serve")

GuardSide = Literal["prompt", "completion"]
_THREADS = 8
_CACHED_SCORES = 4_096
"""Scores of turns that are remembered under a hash, so that a long conversation is not scored again at each turn."""
_RETRY_AFTER = {"Retry-After": "5"}


class GuardSet:
    """The guards and the policy of one server."""

    def __init__(self, settings: GuardFileSettings, scorers: Sequence[GuardScorer], counts: GuardCounts) -> None:
        self.settings, self.counts = settings, counts
        self._guards = list(zip(settings.guards, scorers, strict=True))
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="guard")
        self._cache: OrderedDict[tuple[str, bytes], float] = OrderedDict()

    @classmethod
    def load(cls, settings: GuardFileSettings, device: str = "cpu") -> GuardSet:
        """Load all scorers. Raises InputError where one cannot be loaded, or the counts cannot be written."""
        folder = settings.path.parent
        scorers = [load_guard_scorer(guard, folder, settings.timeout_s, device) for guard in settings.guards]
        return cls(settings, scorers, GuardCounts(settings.counts_path))

    @property
    def policy(self) -> UsePolicy:
        return self.settings.policy

    def close(self) -> None:
        """Write the last counts, and end the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.counts.flush()

    def reads(self, side: GuardSide) -> bool:
        """Return whether a guard reads this side."""
        return any(guard.reads in (side, "both") for guard in self.settings.guards)

    def describe(self) -> list[dict[str, Any]]:
        return [guard.describe() for guard in self.settings.guards]

    async def is_prompt_blocked(self, texts: Sequence[str], use_case: str) -> bool:
        """Return whether a guard blocks one of the texts of a request. Raises APIError where a scorer fails."""
        return await self._is_blocked("prompt", [GuardedText(text) for text in texts], use_case)

    async def is_completion_blocked(self, text: str, prompt: dict[str, Any], use_case: str) -> bool:
        """Return whether a guard blocks a completion, or its beginning. Raises APIError where a scorer fails."""
        return await self._is_blocked("completion", [GuardedText(text, prompt)], use_case)

    async def _is_blocked(self, side: GuardSide, texts: Sequence[GuardedText], use_case: str) -> bool:
        """Ask the guards in the order of the file; the first that blocks ends it."""
        for guard, scorer in self._guards:
            if guard.reads not in (side, "both"):
                continue
            try:
                scores = [await self._score(guard, scorer, text, side) for text in texts if text.text.strip()]
            except (RunError, InputError, ValueError) as error:
                self._fail(guard, side, use_case, error)
                continue
            if any(map(guard.is_flagged, scores)):  # NaN, a text without words, is on no side of a threshold
                if guard.action == "block":
                    self.counts.add(guard.name, side, use_case, "checked", "flagged", "blocked")
                    return True
                self.counts.add(guard.name, side, use_case, "checked", "flagged")
            else:
                self.counts.add(guard.name, side, use_case, "checked")
        return False

    async def _score(self, guard: GuardSettings, scorer: GuardScorer, text: GuardedText, side: GuardSide) -> float:
        key = (guard.name, hashlib.sha256(text.text.encode("utf-8", "surrogatepass")).digest())
        if side == "prompt" and key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        score = await asyncio.get_running_loop().run_in_executor(self._pool, scorer.score, text)
        if side == "prompt":
            self._cache[key] = score
            if len(self._cache) > _CACHED_SCORES:
                self._cache.popitem(last=False)
        return score

    def _fail(self, guard: GuardSettings, side: GuardSide, use_case: str, error: Exception) -> None:
        _log.warning("guard %s gives no score: %s", guard.name, one_line(error, 200))
        self.counts.add(guard.name, side, use_case, "failed")
        if self.settings.refuses_on_error and guard.action == "block":
            message = f"the guard '{guard.name}' cannot check this request now; try again later"
            raise APIError(503, message, code="guard_unavailable", headers=_RETRY_AFTER)


def check_use_case(policy: UsePolicy, key: APIKey | None, counts: GuardCounts | None) -> None:
    """Raise APIError where the policy refuses the use case of a key.

    Raises:
        APIError: the use case is refused, or a person has not approved the key yet.
    """
    use_case = key.use_case if key else ""
    decision = policy.decide(use_case)
    if decision == "allowed" or (decision == "needs a person" and key is not None and key.approved_by):
        return
    if counts is not None:
        counts.add(POLICY_GUARD, "prompt", use_case, "checked", "flagged", "blocked")
    label = f"the use case '{use_case}'" if use_case else "a request without a use case"
    if decision == "needs a person":
        message = f"{label} needs a person's approval: the owner runs 'instructgpt serve keys approve'"
        raise APIError(403, message, code="use_case_needs_approval")
    domain = find_high_stakes_domain(use_case)
    reason = f" (a high-stakes domain: {domain})" if domain else ""
    raise APIError(403, f"{label} is not allowed on this server{reason}", code="use_case_refused")
