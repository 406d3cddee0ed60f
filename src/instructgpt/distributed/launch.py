"""Several processes on one machine: jobs side by side, and one stage divided among ranks.

Helping processes hear nothing of Ctrl-C and end with the process that started them, however that ends: nobody is left
behind who writes into a directory. What goes wrong in one of them is raised here as what it is, and ends the others.
"""

from __future__ import annotations

import gc
import json
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
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from rich.markup import escape
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from instructgpt.config import StageConfig
from instructgpt.data.packing import MICROBATCH_TOKENS, halve_token_budget
from instructgpt.distributed.comm import wait_for_all
from instructgpt.distributed.failures import LAST_WORDS, Place, Signs
from instructgpt.errors import BadInput, RunFailed, is_out_of_memory
from instructgpt.run.directory import console
from instructgpt.run.lock import give_up
from instructgpt.run.signals import deferring_stops

START = timedelta(minutes=10)
"""How long ranks wait for one another to appear."""
PATIENCE = 600.0
"""Seconds after which a rank that does not answer is taken for dead, unless said otherwise."""
PARTING = 60.0
"""Seconds that processes have to keep what they have when somebody asks for the end."""
UNDER_TORCHRUN, STORE_STAYS = "TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE"
AT_ONCE = "INSTRUCTGPT_TOKENS_AT_ONCE"
"""Where a rank of torchrun that has begun anew for want of memory finds how many tokens it computes at once."""

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
        BadInput: both ways of dividing were asked for, there are fewer GPUs than ranks, or an option would have no effect.
        KeyboardInterrupt: somebody asked it to end, and it has kept what it had.
    """
    offload = "offload" in config.memory
    if offload and device_kind(config.device) == "cpu":
        raise BadInput(f"{config.stage}: --memory offload has no effect on a CPU, where everything is in its memory; leave the word out")
    if UNDER_TORCHRUN in os.environ:
        if count > 1:
            raise BadInput(f"--processes {count}: torchrun has started the ranks already; leave --processes out")
        store, rank, ranks = next(rendezvous("env://", timeout=START))
        if less := os.environ.get(AT_ONCE):
            store = PrefixStore(less, store)  # what was said there before is about other processes
            MICROBATCH_TOKENS.update(json.loads(less))
            if rank == 0:
                say_less(config)
        place = Place(rank, ranks, int(os.environ["LOCAL_RANK"]), patience)
        take_part(place, store, main, config, anew=config.resume and os.environ.get(STORE_STAYS) == "True")
    elif count == 1:
        if "patience" in config.model_fields_set:
            raise BadInput(f"{config.stage}: --patience has no effect on one process, which waits for no other")
        try:
            with deferring_stops():
                with_less_at_once(lambda: _start_ranks(main, config, 1, patience) if offload else main(config), config)
        finally:
            give_up(config.out)
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
        say_less(config)


def say_less(config: StageConfig) -> None:
    """A line about how it goes on after memory ran out."""
    at_once = MICROBATCH_TOKENS[device_kind(config.device)]
    console.print(f"[bold]{escape(config.out.name)}[/] [yellow]out of memory: goes on with {at_once} tokens at once[/]", soft_wrap=True)


def begin_anew(less: str) -> NoReturn:
    """Be this program from its beginning, in the process that torchrun watches, with fewer tokens at once.

    All that the process held is given back, whatever state its connections and its GPU are in.

    Args:
        less: `MICROBATCH_TOKENS` from now on, as JSON; the same on all ranks.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, AT_ONCE: less})


def _start_ranks(main: Callable[[C], Any], config: C, count: int, patience: float) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=START)
    places = [Place(rank, count, rank, patience) for rank in range(count)]
    if count == 1:
        places = [Place(0, 1, torch.device(config.device).index or 0 if ":" in config.device else 0, patience)]
    side_by_side(count, [(_rank, (place, store.port, dict(MICROBATCH_TOKENS), main, config)) for place in places])


def _rank(place: Place, port: int, at_once: dict[str, int], main: Callable[[C], Any], config: C) -> None:
    """One process's part of a stage on this machine. The store of addresses is held by the process that started it."""
    MICROBATCH_TOKENS.update(at_once)
    take_part(place, TCPStore("127.0.0.1", port, is_master=False, timeout=START), main, config)


def take_part(place: Place, store: Store, main: Callable[[C], Any], config: C, *, anew: bool = False) -> None:
    """Be one rank of a stage, from meeting the others to parting from them.

    A rank that fails keeps its connections: it is ended by who started it, after its error is known. One that is alone has none.

    Args:
        place: of this rank; store: in which ranks find each other.
        main: one rank's part of the stage; config: the stage's.
        anew: when memory runs out in one rank, all of them begin anew with fewer tokens at once.

    Raises:
        SystemExit: this rank ends because of another, whose error is the one that is shown.
    """
    backend = "gloo"
    if device_kind(config.device) == "cuda":
        if place.local >= torch.cuda.device_count():
            raise BadInput(f"rank {place.rank} has no GPU, there are {torch.cuda.device_count()} here; start fewer ranks, or --device cpu")
        torch.cuda.set_device(place.local)
        backend = "cpu:gloo,cuda:nccl"
    signs = Signs(store, place, begin_anew if anew else None)
    with deferring_stops():
        try:
            dist.init_process_group(
                backend, store=store, rank=place.rank, world_size=place.ranks, timeout=timedelta(seconds=place.patience)
            )
            main(config)
            wait_for_all()
        except KeyboardInterrupt:
            raise KeyboardInterrupt if place.rank == 0 else SystemExit(1) from None  # said once
        except Exception as error:
            if anew and is_out_of_memory(error) and halve_token_budget():
                signs.begin_anew(json.dumps(MICROBATCH_TOKENS))
            raise signs.explained(error) from error
        finally:
            if place.ranks == 1 or sys.exc_info()[0] is None:
                signs.stop()
                if dist.is_initialized():
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
