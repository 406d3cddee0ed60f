"""Options of `serve`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from instructgpt.config import CommandConfig


class EndpointConfig(CommandConfig):
    """Options of `serve`."""

    stage: ClassVar[str] = "serve"
    interrupt_message: ClassVar[str] = "stopped"

    model: tuple[str, ...] = Field(description="models to serve, by their names: [NAME=]DIR or a hub name")
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all interfaces")
    port: int = Field(8001, ge=0, le=65_535, description="port to listen on; 0 takes a free one")
    max_rows: int = Field(64, ge=1, description="completions computed at once; more wait")
    max_waiting: int = Field(256, ge=1, description="completions that may wait; more are refused with 503")
    timeout: float = Field(600.0, gt=0, description="seconds after which a request is ended")
    device: str = Field("auto", description="cpu, cuda, cuda:1 …; auto takes a GPU when there is one")
