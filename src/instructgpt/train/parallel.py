"""Several processes on one machine: jobs side by side, and one stage divided among ranks.

Helping processes hear nothing of Ctrl-C and end with the process that started them, however that ends: nobody is left
behind who writes into a directory. What goes wrong in one of them is raised here as what it is, and ends the others.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import wait as wait_for_any
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from rich.markup import escape
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from instructgpt.config import StageConfig
from instructgpt.data.batches import MICROBATCH_TOKENS, halve_token_budget
from instructgpt.errors import BadInput, RunFailed, is_out_of_memory
from instructgpt.ranks import wait_for_all
from instructgpt.run import console
from instructgpt.run.stopping import heard
from instructgpt.train.signs import LAST_WORDS, Place, Signs

START = timedelta(minutes=10)
"""How long ranks wait for one another to appear."""
PATIENCE = 600.0
"""Seconds after which a rank that does not answer is taken for dead, unless said otherwise."""
PARTING = 60.0
"""Seconds that processes have to keep what they have when somebody asks for the end."""
UNDER_TORCHRUN = "TORCHELASTIC_RUN_ID"

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
        except KeyboardInterrupt:
            for child in multiprocessing.active_children():
                child.terminate()
            wait(running, timeout=PARTING)
            raise
        finally:
            if sys.exc_info()[0] is not None:
                for child in multiprocessing.active_children():
                    child.kill()


@contextmanager
def dividing(processes: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """A `map` whose calls are made in so many helping processes, its results in order; the built-in one where that is one.

    What is called must be a function of a module, or a `partial` of one, and what it is given and gives must be picklable.

    Raises:
        RunFailed: a process died. What a call raised is raised again when its turn comes, and the other calls are ended.
    """
    if processes == 1:
        yield map
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _help) as pool:

        def over(function: Callable[..., Any], *columns: Iterable[Any]) -> Iterator[Any]:
            with _interrupts_ignored():
                running = [pool.submit(function, *each) for each in zip(*columns, strict=True)]
            for one in running:
                wait([one])
                if one.exception() is not None and (error := cause(running)) is not None:
                    raise error
                yield one.result()

        try:
            yield over
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
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


def launch(main: Callable[[C], Any], config: C, count: int, patience: float = PATIENCE) -> None:
    """Run a stage: in this process, in `count` processes of this machine, or as one of the ranks that torchrun has started.

    Args:
        main: one rank's part of the stage; config: the stage's.
        count: processes on this machine.
        patience: seconds after which a rank that does not answer is taken for dead.

    Raises what the stage raises, and:
        BadInput: both ways of dividing were asked for, or there are fewer GPUs than ranks.
        KeyboardInterrupt: somebody asked it to end, and it has kept what it had.
    """
    if UNDER_TORCHRUN in os.environ:
        if count > 1:
            raise BadInput(f"--processes {count}: torchrun has started the ranks already; leave --processes out")
        store, rank, ranks = next(rendezvous("env://", timeout=START))
        take_part(Place(rank, ranks, int(os.environ["LOCAL_RANK"]), patience), store, main, config)
    elif count == 1:
        if "patience" in config.model_fields_set:
            raise BadInput(f"{config.stage}: --patience has no effect on one process, which waits for no other")
        with heard():
            with_less_at_once(lambda: main(config), config)
    else:
        with_less_at_once(lambda: _start_ranks(main, config, count, patience), config)


def with_less_at_once(work: Callable[[], object], config: StageConfig) -> None:
    """Do a stage's work; when memory runs out, again from its last checkpoint with half as many tokens at once, which changes no result.

    Raises what the work raises, at last also that memory ran out.
    """
    while True:
        try:
            work()
            return
        except Exception as error:
            if not is_out_of_memory(error) or not config.resume or not halve_token_budget():
                raise
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        at_once = MICROBATCH_TOKENS[device_kind(config.device)]
        console.print(f"[bold]{escape(config.out.name)}[/] [yellow]out of memory: goes on with {at_once} tokens at once[/]", soft_wrap=True)


def _start_ranks(main: Callable[[C], Any], config: C, count: int, patience: float) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=START)
    places = [Place(rank, count, rank, patience) for rank in range(count)]
    side_by_side(count, [(_rank, (place, store.port, dict(MICROBATCH_TOKENS), main, config)) for place in places])


def _rank(place: Place, port: int, at_once: dict[str, int], main: Callable[[C], Any], config: C) -> None:
    """One process's part of a stage on this machine. The store of addresses is held by the process that started it."""
    MICROBATCH_TOKENS.update(at_once)
    take_part(place, TCPStore("127.0.0.1", port, is_master=False, timeout=START), main, config)


def take_part(place: Place, store: Store, main: Callable[[C], Any], config: C) -> None:
    """Be one rank of a stage, from meeting the others to parting from them.

    A rank that fails keeps its connections: it is ended by who started it, after its error is known.

    Raises:
        SystemExit: this rank ends because of another, whose error is the one that is shown.
    """
    backend = "gloo"
    if device_kind(config.device) == "cuda":
        if place.local >= torch.cuda.device_count():
            raise BadInput(f"rank {place.rank} has no GPU, there are {torch.cuda.device_count()} here; start fewer ranks, or --device cpu")
        torch.cuda.set_device(place.local)
        backend = "cpu:gloo,cuda:nccl"
    signs = Signs(store, place)
    with heard():
        try:
            dist.init_process_group(
                backend, store=store, rank=place.rank, world_size=place.ranks, timeout=timedelta(seconds=place.patience)
            )
            main(config)
            wait_for_all()
        except KeyboardInterrupt:
            raise KeyboardInterrupt if place.rank == 0 else SystemExit(1) from None  # said once
        except Exception as error:
            raise signs.explained(error) from error
        signs.stop()
        dist.destroy_process_group()


def device_kind(name: str) -> str:
    """`cpu` or `cuda`: what an option for the device means here."""
    return name.partition(":")[0] if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


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
