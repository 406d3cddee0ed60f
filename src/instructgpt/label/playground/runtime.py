"""The state of a running playground: its endpoint, the turns in progress, and the limits on them. No texts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from instructgpt.label.context import Settings
from instructgpt.label.errors import SiteError
from instructgpt.label.playground.endpoint import ModelEndpoint
from instructgpt.label.playground.streaming import TurnStream

_MAX_ACTIVE_TURNS, _MAX_ACTIVE_TURNS_PER_USER = 64, 3
_RETRY_AFTER_S = 5


class Playground:
    """The playground of a site that has an endpoint."""

    def __init__(self, settings: Settings) -> None:
        self.endpoint = ModelEndpoint(settings.endpoint or "", settings.endpoint_key)
        self._offered_models = settings.endpoint_models
        self._active: dict[tuple[str, str], TurnStream] = {}

    async def list_offered_models(self) -> list[str]:
        """Return the models that users can get; raise ModelEndpointError."""
        models = await self.endpoint.list_models()
        return [name for name in models if not self._offered_models or name in self._offered_models] or list(models)

    def check_capacity(self, user_id: str, key: str) -> None:
        """Raise SiteError 429 when the user or the site has too many turns in progress, or this one already is."""
        of_user = sum(active_user == user_id for active_user, _ in self._active)
        is_full = len(self._active) >= _MAX_ACTIVE_TURNS or of_user >= _MAX_ACTIVE_TURNS_PER_USER
        if is_full or (user_id, key) in self._active:
            raise SiteError(429, "playground_busy", retry_after=_RETRY_AFTER_S)

    @contextmanager
    def activate(self, user_id: str, key: str, turn: TurnStream) -> Iterator[None]:
        """Register a turn while it is sampled."""
        self._active[user_id, key] = turn
        try:
            yield
        finally:
            self._active.pop((user_id, key), None)

    def stop(self, user_id: str, key: str) -> bool:
        """Stop a turn of a user early, from within the event loop; return whether it is in progress."""
        turn = self._active.get((user_id, key))
        if turn is not None:
            turn.stop_event.set()
        return turn is not None
