"""Options of `serve`, `serve keys`, `serve log` and `chat`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from instructgpt.config import CommandConfig, SamplingOptions

CHAT_KEY_VARIABLE = "INSTRUCTGPT_CHAT_KEY"


class EndpointConfig(CommandConfig):
    """Options of `serve`."""

    stage: ClassVar[str] = "serve"
    interrupt_message: ClassVar[str] = "stopped"

    model: tuple[str, ...] = Field((), description="models to serve, by their names: [NAME=]DIR or a hub name")
    upstream: str | None = Field(
        None,
        description="address of another OpenAI-compatible server, such as http://127.0.0.1:8000/v1, that answers "
        "instead of --model; its key is read from INSTRUCTGPT_UPSTREAM_KEY",
    )
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all interfaces, with --keys only")
    port: int = Field(8001, ge=0, le=65_535, description="port to listen on; 0 takes a free one")
    keys: Path | None = Field(None, description="file of keys made by 'serve keys add'; without it no key is needed")
    store: Path | None = Field(
        None, description="directory for requests that say store: true, from keys whose owners agreed"
    )
    guard: Path | None = Field(
        None, description="YAML file with guards before and after the model, and the policy of use cases"
    )
    rate: int = Field(0, ge=0, description="requests a minute of each key; 0: any number")
    max_rows: int = Field(64, ge=1, description="completions computed at once; more wait")
    max_waiting: int = Field(256, ge=1, description="completions that may wait; more are refused with 503")
    timeout: float = Field(600.0, gt=0, description="seconds after which a request is ended")
    metrics: bool = Field(False, description="show counters at /metrics in Prometheus' format")
    device: str = Field("auto", description="cpu, cuda, cuda:1 …; auto takes a GPU when there is one")

    def ineffective_options(self) -> Iterator[str]:
        """Yield options that have no effect beside another one."""
        if self.upstream is not None:
            if self.model:
                yield "--model has no effect with --upstream: the other server has the models"
            yield from (
                f"--{name.replace('_', '-')} has no effect with --upstream"
                for name in ("device", "max_rows", "max_waiting")
                if name in self.model_fields_set
            )
        if self.store is not None and self.keys is None:
            yield "--store has no effect without --keys: only a key's owner can agree"


class ServeKeysConfig(CommandConfig):
    """Options of `serve keys`."""

    stage: ClassVar[str] = "serve keys"

    action: Literal["add", "approve", "revoke", "list"] = Field(description="add, approve, revoke or list")
    keys: Path = Field(description="file of keys")
    name: str | None = Field(None, description="name of the key")
    owner: str | None = Field(None, description="person or team that the key is for")
    use_case: str = Field("", description="what the key is for; stored prompts carry it, and --guard's policy reads it")
    approved_by: str | None = Field(
        None, description="person who approves the use case, where the policy says 'needs a person'"
    )
    allow_store: bool = Field(False, description="the owner agreed that requests which say store: true are kept")


class ServeGuardConfig(CommandConfig):
    """Options of `serve guard`."""

    stage: ClassVar[str] = "serve guard"

    action: Literal["curve", "counts", "card"] = Field(
        description="curve (errors of each guard at each threshold), counts (of each day), or card (write the policy "
        "into the model card of --model)"
    )
    guard: Path = Field(description="YAML file of 'serve --guard'")
    data: tuple[Path, ...] = Field(
        (), description="labeled texts for curve: prompt or completion, and label (safe or unsafe) or harmful"
    )
    model: tuple[Path, ...] = Field((), description="model directories whose README.md gets the policy")
    device: str = Field("auto", description="cpu, cuda, cuda:1 …; auto takes a GPU when there is one")
    skip_bad: bool = Field(False, description="leave out and count bad rows instead of stopping")


class ServeLogConfig(CommandConfig):
    """Options of `serve log`."""

    stage: ClassVar[str] = "serve log"

    action: Literal["counts", "delete", "expire"] = Field(
        description="counts, delete (everything of --owner) or expire (older than --days)"
    )
    store: Path = Field(description="directory of kept requests")
    owner: str | None = Field(None, description="whose requests are deleted")
    days: int | None = Field(None, ge=0, description="how long requests are kept")


class ChatConfig(SamplingOptions):
    """Options of `chat`."""

    stage: ClassVar[str] = "chat"
    excluded_fields: ClassVar[frozenset[str]] = frozenset({"stop"})
    interrupt_message: ClassVar[str] = "ended"

    model: tuple[str, ...] = Field(
        (), description="models that answer side by side, [NAME=]DIR or a hub name; with --url names of its models"
    )
    url: str | None = Field(
        None, description="address of an OpenAI-compatible endpoint; its key is read from INSTRUCTGPT_CHAT_KEY"
    )
    reward: str | None = Field(None, description="reward model whose score is shown beside each answer")
    system: str | None = Field(None, description="system prompt")
    seed: int | None = Field(None, ge=0, description="seed of the answers; default: other answers each time")
    demonstrations: Path | None = Field(None, description="file that /save appends demonstrations to")
    rankings: Path | None = Field(None, description="file that /rank appends rankings to")
    device: str = Field("auto", description="cpu, cuda, cuda:1 …; auto takes a GPU when there is one")
