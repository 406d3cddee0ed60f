"""Several processes on one machine: jobs side by side, and one stage divided among ranks.

Helping processes hear nothing of Ctrl-C and end with the process that started them, however that ends: nobody is left
behind who writes into a directory. What goes wrong in one of them is raised here as what it is, and ends the others.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import wait as wait_for_any
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from instructgpt.config import StageConfig
from instructgpt.errors import BadInput, RunFailed

LAST_WORDS = 5.0
"""Seconds in which the other processes may still say that they are the cause of the first error."""

C = TypeVar("C", bound=StageConfig)
Job = tuple[Callable[..., Any], tuple[Any, ...]]


def side_by_side(processes: int, jobs: Sequence[Job]) -> None:
    """Run jobs in separate processes, `processes` at a time; one alone runs here.

    Raises:
        RunFailed: a process died. What a job raised is raised again, and the other jobs are ended.
    """
    if processes == 1 or len(jobs) == 1:
        for function, arguments in jobs:
            function(*arguments)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _help) as pool:
        try:
            with _interrupts_ignored():
                running = [pool.submit(function, *arguments) for function, arguments in jobs]
            wait(running, return_when=FIRST_EXCEPTION)
            if (error := cause(running)) is not None:
                raise error
        except BaseException:
            for child in multiprocessing.active_children():
                child.kill()
            raise


def cause(running: Sequence[Future[Any]]) -> BaseException | None:
    """Why jobs ended, or None where all is well. When one fails, others fail because of it: what explains most comes first."""

    def errors() -> list[BaseException]:
        return [error for one in running if one.done() and not one.cancelled() and (error := one.exception())]

    if errors() and not any(isinstance(error, BadInput | RunFailed) for error in errors()):
        wait(running, timeout=LAST_WORDS)
    for kind in (BadInput, RunFailed, BrokenProcessPool, BaseException):
        for error in errors():
            if isinstance(error, BrokenProcessPool) and kind is BrokenProcessPool:
                told = "a helping process died, likely killed for want of memory; the same command goes on, --processes 1 needs less"
                return RunFailed(told)
            if isinstance(error, kind):
                return error
    return None


def launch(main: Callable[[C], Any], config: C, count: int) -> None:
    """Run a stage in this process, or in `count` processes that divide its batches. Raises what the stage raises."""
    if count == 1:
        main(config)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    side_by_side(count, [(_rank, (rank, main, config, count, port)) for rank in range(count)])


def _rank(rank: int, main: Callable[[C], Any], config: C, count: int, port: int) -> None:
    """One process's part of a stage. A rank that fails keeps its connections: it is ended by who started it, after its error is known."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=count, timeout=timedelta(minutes=10))
    main(config)
    dist.destroy_process_group()


def _help() -> None:
    """Settle in as a helping process: one thread, and an end when the process that started it ends."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def end_with_parent() -> None:
        wait_for_any([sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """While processes are started: one that is started deaf to Ctrl-C stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
