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
from instructgpt.distributed.comm import barrier
from instructgpt.distributed.failures import ERROR_GRACE_S, LaunchedRank, RankMonitor
from instructgpt.errors import InputError, RunError, is_out_of_memory
from instructgpt.run.directory import console
from instructgpt.run.lock import release_directory_lock
from instructgpt.run.signals import defer_interrupts

_RENDEZVOUS_TIMEOUT = timedelta(minutes=10)
"""How long ranks wait for one another to appear."""
RANK_TIMEOUT_S = 600.0
"""Seconds after which a rank that does not answer is taken for dead, unless said otherwise."""
_SHUTDOWN_TIMEOUT_S = 60.0
"""Seconds that processes have to keep what they have when somebody asks for the end."""
_TORCHRUN_ID_ENV, _AGENT_STORE_ENV = "TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE"
_MICROBATCH_TOKENS_ENV = "INSTRUCTGPT_TOKENS_AT_ONCE"
"""Where a rank of torchrun that has begun anew for want of memory finds how many tokens it computes at once."""

_StageConfigT = TypeVar("_StageConfigT", bound=StageConfig)
ProcessJob = tuple[Callable[..., Any], tuple[Any, ...]]


def run_processes(processes: int, jobs: Sequence[ProcessJob]) -> None:
    """Run jobs in separate processes, `processes` at a time; one alone runs here.

    Raises:
        RunFailed: a process died. What a job raised is raised again, and the other jobs are ended.
    """
    if processes == 1 or len(jobs) == 1:
        for function, arguments in jobs:
            function(*arguments)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _init_worker) as pool:
        try:
            with _ignore_interrupts():
                futures = [pool.submit(function, *arguments) for function, arguments in jobs]
            wait(futures, return_when=FIRST_EXCEPTION)
            if (error := _root_error(futures)) is not None:
                raise error
        except KeyboardInterrupt:
            for child in multiprocessing.active_children():
                child.terminate()
            wait(futures, timeout=_SHUTDOWN_TIMEOUT_S)
            raise
        finally:
            if sys.exc_info()[0] is not None:
                for child in multiprocessing.active_children():
                    child.kill()


@contextmanager
def process_map(processes: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """A `map` whose calls are made in so many helping processes, its results in order; the built-in one where that is one.

    What is called must be a function of a module, or a `partial` of one, and what it is given and gives must be picklable.

    Raises:
        RunFailed: a process died. What a call raised is raised again when its turn comes, and the other calls are ended.
    """
    if processes == 1:
        yield map
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _init_worker) as pool:

        def parallel_map(function: Callable[..., Any], *columns: Iterable[Any]) -> Iterator[Any]:
            with _ignore_interrupts():
                futures = [pool.submit(function, *arguments) for arguments in zip(*columns, strict=True)]
            for future in futures:
                wait([future])
                if future.exception() is not None and (error := _root_error(futures)) is not None:
                    raise error
                yield future.result()

        try:
            yield parallel_map
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.kill()
            raise


def _root_error(futures: Sequence[Future[Any]]) -> BaseException | None:
    """Why jobs ended, or None where all is well. When one fails, others fail because of it: what explains most comes first."""

    def errors() -> list[BaseException]:
        return [
            error for future in futures if future.done() and not future.cancelled() and (error := future.exception())
        ]

    if errors() and not any(isinstance(error, InputError | RunError) for error in errors()):
        wait(futures, timeout=ERROR_GRACE_S)
    for kind in (InputError, RunError, BrokenProcessPool, BaseException):
        for error in errors():
            if isinstance(error, BrokenProcessPool) and kind is BrokenProcessPool:
                message = "a helping process died, likely killed for want of memory; the same command goes on, --processes 1 needs less"
                return RunError(message)
            if isinstance(error, kind):
                return error
    return None


def launch(
    main: Callable[[_StageConfigT], Any], config: _StageConfigT, process_count: int, timeout_s: float = RANK_TIMEOUT_S
) -> None:
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
    if offload and device_type(config.device) == "cpu":
        raise InputError(
            f"{config.stage}: --memory offload has no effect on a CPU, where everything is in its memory; leave the word out"
        )
    if _TORCHRUN_ID_ENV in os.environ:
        if process_count > 1:
            raise InputError(
                f"--processes {process_count}: torchrun has started the ranks already; leave --processes out"
            )
        store, rank, world_size = next(rendezvous("env://", timeout=_RENDEZVOUS_TIMEOUT))
        if microbatch_tokens := os.environ.get(_MICROBATCH_TOKENS_ENV):
            store = PrefixStore(microbatch_tokens, store)  # what was said there before is about other processes
            MICROBATCH_TOKENS.update(json.loads(microbatch_tokens))
            if rank == 0:
                _report_smaller_microbatch(config)
        launched_rank = LaunchedRank(rank, world_size, int(os.environ["LOCAL_RANK"]), timeout_s)
        _run_rank(
            launched_rank,
            store,
            main,
            config,
            restart_on_oom=config.resume and os.environ.get(_AGENT_STORE_ENV) == "True",
        )
    elif process_count == 1:
        if "patience" in config.model_fields_set:
            raise InputError(f"{config.stage}: --patience has no effect on one process, which waits for no other")
        try:
            with defer_interrupts():
                retry_on_oom(lambda: _start_ranks(main, config, 1, timeout_s) if offload else main(config), config)
        finally:
            release_directory_lock(config.out)
    else:
        retry_on_oom(lambda: _start_ranks(main, config, process_count, timeout_s), config)


def retry_on_oom(run_stage: Callable[[], object], config: StageConfig) -> None:
    """Do a stage's work; when memory runs out, again from its last checkpoint with half as many tokens at once, which changes no result.

    Raises what the work raises, at last also that memory ran out.
    """
    while True:
        try:
            run_stage()
            return
        except Exception as error:
            if not is_out_of_memory(error) or not config.resume or not halve_token_budget():
                raise
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _report_smaller_microbatch(config)


def _report_smaller_microbatch(config: StageConfig) -> None:
    """A line about how it goes on after memory ran out."""
    microbatch_tokens = MICROBATCH_TOKENS[device_type(config.device)]
    console.print(
        f"[bold]{escape(config.out.name)}[/] [yellow]out of memory: goes on with {microbatch_tokens} tokens at once[/]",
        soft_wrap=True,
    )


def reexec(microbatch_tokens: str) -> NoReturn:
    """Be this program from its beginning, in the process that torchrun watches, with fewer tokens at once.

    All that the process held is given back, whatever state its connections and its GPU are in.

    Args:
        less: `MICROBATCH_TOKENS` from now on, as JSON; the same on all ranks.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.execve(
        sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, _MICROBATCH_TOKENS_ENV: microbatch_tokens}
    )


def _start_ranks(
    main: Callable[[_StageConfigT], Any], config: _StageConfigT, process_count: int, timeout_s: float
) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=_RENDEZVOUS_TIMEOUT)
    launched_ranks = [LaunchedRank(rank, process_count, rank, timeout_s) for rank in range(process_count)]
    if process_count == 1:
        launched_ranks = [
            LaunchedRank(0, 1, torch.device(config.device).index or 0 if ":" in config.device else 0, timeout_s)
        ]
    run_processes(
        process_count,
        [
            (_run_local_rank, (launched_rank, store.port, dict(MICROBATCH_TOKENS), main, config))
            for launched_rank in launched_ranks
        ],
    )


def _run_local_rank(
    launched_rank: LaunchedRank,
    port: int,
    microbatch_tokens: dict[str, int],
    main: Callable[[_StageConfigT], Any],
    config: _StageConfigT,
) -> None:
    """One process's part of a stage on this machine. The store of addresses is held by the process that started it."""
    MICROBATCH_TOKENS.update(microbatch_tokens)
    _run_rank(launched_rank, TCPStore("127.0.0.1", port, is_master=False, timeout=_RENDEZVOUS_TIMEOUT), main, config)


def _run_rank(
    launched_rank: LaunchedRank,
    store: Store,
    main: Callable[[_StageConfigT], Any],
    config: _StageConfigT,
    *,
    restart_on_oom: bool = False,
) -> None:
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
    if device_type(config.device) == "cuda":
        if launched_rank.local_rank >= torch.cuda.device_count():
            raise InputError(
                f"rank {launched_rank.rank} has no GPU, there are {torch.cuda.device_count()} here; start fewer ranks, or --device cpu"
            )
        torch.cuda.set_device(launched_rank.local_rank)
        backend = "cpu:gloo,cuda:nccl"
    monitor = RankMonitor(store, launched_rank, reexec if restart_on_oom else None)
    with defer_interrupts():
        try:
            dist.init_process_group(
                backend,
                store=store,
                rank=launched_rank.rank,
                world_size=launched_rank.world_size,
                timeout=timedelta(seconds=launched_rank.timeout_s),
            )
            main(config)
            barrier()
        except KeyboardInterrupt:
            raise KeyboardInterrupt if launched_rank.rank == 0 else SystemExit(1) from None  # said once
        except Exception as error:
            if restart_on_oom and is_out_of_memory(error) and halve_token_budget():
                monitor.restart_all(json.dumps(MICROBATCH_TOKENS))
            raise monitor.resolve_error(error) from error
        finally:
            if launched_rank.world_size == 1 or sys.exc_info()[0] is None:
                monitor.stop()
                if dist.is_initialized():
                    dist.destroy_process_group()


def device_type(name: str) -> str:
    """`cpu` or `cuda`: what an option for the device means here."""
    return name.partition(":")[0] if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _init_worker() -> None:
    """Settle in as a helping process: one thread, and an end when the process that started it ends."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def exit_with_parent() -> None:
        wait_for_any([sentinel])
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()


@contextmanager
def _ignore_interrupts() -> Iterator[None]:
    """While processes are started: one that is started deaf to Ctrl-C stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous_handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous_handler)
