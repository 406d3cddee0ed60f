"""The command `serve`.

instructgpt serve --model runs/demo/ppo_ptx
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading

import torch
import uvicorn

from instructgpt.errors import InputError
from instructgpt.models.loading import load_model_config, parse_named_models
from instructgpt.models.policy import pick_device
from instructgpt.network import bind_socket, is_loopback, socket_url
from instructgpt.serve.app import EndpointState, create_endpoint_app
from instructgpt.serve.configs import EndpointConfig
from instructgpt.serve.gate import Gate
from instructgpt.serve.generation import GenerationLimits
from instructgpt.serve.guard.checking import GuardSet
from instructgpt.serve.guard.settings import read_guard_file
from instructgpt.serve.keys import KeyFile
from instructgpt.serve.rate_limit import RateLimiter
from instructgpt.serve.request_log import RequestLog
from instructgpt.serve.served_model import ServedModel
from instructgpt.serve.storage import Storage
from instructgpt.serve.upstream import UPSTREAM_KEY_VARIABLE, Upstream

_SWITCH_INTERVAL_S = 0.0005
"""How long the threads that sample and send may keep each other waiting; Python's 5 ms is the length of a step."""


def main(config: EndpointConfig) -> None:
    """Serve models, or another server's, until the command is stopped.

    Raises:
        InputError: a model cannot be loaded, or the address cannot be used.
    """
    if bool(config.model) == bool(config.upstream):
        raise InputError("serve: give --model DIR, or --upstream URL")
    if config.keys is None and not is_loopback(config.host):
        hint = "make one with 'instructgpt serve keys add --keys FILE --name N --owner O' and give --keys FILE"
        raise InputError(f"--host {config.host}: other machines are served with keys only; {hint}")
    sources = parse_named_models(config.model)
    device = pick_device(config.device)
    for source in sources.values():
        load_model_config(source)  # a wrong path is reported before the address is taken
    state = make_state(config)
    server = uvicorn.Server(
        uvicorn.Config(
            create_endpoint_app(state),
            log_config=None,  # uvicorn's configuration would close all other log handlers of the process
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=5,
        )
    )
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    with bind_socket(config.host, config.port) as listener:
        print(f"endpoint: {socket_url(listener, config.host)}/v1 (Ctrl-C stops it)", flush=True)
        loader = _Loader(state, sources, device, config, server)
        loader.start()
        # uvicorn shuts down gracefully on Ctrl-C and then raises the signal again
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    loader.join()
    for model in state.models.values():
        model.engine.close()
    if loader.error is not None:
        raise loader.error
    print("stopped")


def make_state(config: EndpointConfig) -> EndpointState:
    """Return what the routes share, without models."""
    state = EndpointState(
        gate=Gate(KeyFile(config.keys) if config.keys else None, RateLimiter(config.rate)),
        limits=GenerationLimits(timeout_s=config.timeout),
        storage=Storage(RequestLog(config.store) if config.store else None),
        guards=_load_guards(config),
        shows_metrics=config.metrics,
    )
    if config.upstream:
        if not config.upstream.startswith(("http://", "https://")):
            raise InputError(f"--upstream {config.upstream}: expected http://HOST:PORT/v1")
        state.upstream = Upstream(config.upstream, os.environ.get(UPSTREAM_KEY_VARIABLE), config.timeout)
    return state


def _load_guards(config: EndpointConfig) -> GuardSet | None:
    if config.guard is None:
        return None
    guards = GuardSet.load(read_guard_file(config.guard), config.device)
    if config.keys is None and guards.policy.use_cases:
        print("--guard: requests have no use case without --keys; the policy decides as for 'unlisted'", flush=True)
    return guards


class _Loader(threading.Thread):
    """Loads the models while the server already answers 503; stops the server where one cannot be loaded."""

    def __init__(
        self,
        state: EndpointState,
        sources: dict[str, str],
        device: torch.device,
        config: EndpointConfig,
        server: uvicorn.Server,
    ) -> None:
        super().__init__(name="loader")
        self.state, self.sources, self.device, self.config, self.server = state, sources, device, config, server
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            for name, source in self.sources.items():
                if self.server.should_exit:
                    return
                model = ServedModel.load(name, source, self.device, self.config.max_rows, self.config.max_waiting)
                self.state.models[name] = model
                print(f"{name}: {model.tokenizer.describe()}; context {model.context}", flush=True)
            self.state.is_ready = True
            print("ready", flush=True)
        except Exception as error:  # the main thread raises it
            self.error = error
            self.server.should_exit = True
