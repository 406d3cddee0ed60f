"""Process launch: independent jobs in parallel, and one stage divided among ranks.

Worker processes ignore SIGINT and exit when their parent exits, so no orphan keeps writing. An exception in a worker is
raised in the parent and ends the other workers.
"""

from __future__ import annotations

import ast
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
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from rich.markup import escape
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from instructgpt.config import RANK_TIMEOUT_S, StageConfig
from instructgpt.data.packing import MICROBATCH_TOKENS, halve_token_budget
from instructgpt.distributed.comm import barrier, set_barrier
from instructgpt.distributed.failures import ERROR_GRACE_S, LaunchedRank, RankMonitor
from instructgpt.distributed.restart import can_restart, restart_program, restarted_tokens, store_after_restart
from instructgpt.errors import InputError, RunError, is_out_of_memory
from instructgpt.io import write_text_atomic
from instructgpt.run.directory import console, read_run_record
from instructgpt.run.lock import release_directory_lock
from instructgpt.run.patches import check_no_patches
from instructgpt.run.signals import defer_interrupts

_RENDEZVOUS_TIMEOUT = timedelta(minutes=10)
"""Default of --patience: seconds without an answer before a rank counts as dead."""
_SHUTDOWN_TIMEOUT_S = 60.0  # for the workers' last checkpoints after Ctrl-C
_TORCHRUN_ID_ENV = "TORCHELASTIC_RUN_ID"

_StageConfigT = TypeVar("_StageConfigT", bound=StageConfig)
_RankMain = Callable[[_StageConfigT], Any]
ProcessJob = tuple[Callable[..., Any], tuple[Any, ...]]


def run_processes(processes: int, jobs: Sequence[ProcessJob]) -> None:
    """Run jobs in worker processes, `processes` at a time; with one process or job, in this process.

    Raises what a job raised, or RunError if a worker died, and kills the other jobs.
    """
    if processes == 1 or len(jobs) == 1:
        for function, arguments in jobs:
            function(*arguments)
        return
    check_main_guard()
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _init_worker) as pool:
        try:
            with _ignore_interrupts():
                futures = [pool.submit(function, *arguments) for function, arguments in jobs]
            wait(futures, return_when=FIRST_EXCEPTION)
            if (error := _root_error(futures)) is not None:
                raise error
        except KeyboardInterrupt:
            for child in multiprocessing.active_children():
                child.terminate()  # SIGTERM lets a stage finish its step and write a checkpoint
            wait(futures, timeout=_SHUTDOWN_TIMEOUT_S)
            raise
        finally:
            if sys.exc_info()[0] is not None:
                for child in multiprocessing.active_children():
                    child.kill()


def check_main_guard() -> None:
    """Raise InputError where worker processes, which import the running script, would start all of it again."""
    check_no_patches()
    main_module = sys.modules.get("__main__")
    file = getattr(main_module, "__file__", None)
    if file is None or Path(file).name == "__main__.py" or not Path(file).is_file():
        return  # not a script: a notebook, `python -c`, or a package, which workers do not import
    try:
        tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return
    names = (
        node.id
        for statement in tree.body
        if isinstance(statement, ast.If)
        for node in ast.walk(statement.test)
        if isinstance(node, ast.Name)
    )
    if "__name__" not in names:
        raise InputError(
            f"{file}: worker processes import this script and would run it again; put the call below "
            '`if __name__ == "__main__":`'
        )


@contextmanager
def process_map(processes: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """Yield a `map` that calls in worker processes and keeps the order; with one process, the built-in.

    Functions, arguments and results must be picklable. Raises what a call raised, or RunError if a worker died.
    """
    if processes == 1:
        yield map
        return
    check_main_guard()
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
    """Return the error that best explains why jobs ended, or None; one failure makes others fail."""

    def errors() -> list[BaseException]:
        ended = [future for future in futures if future.done() and not future.cancelled()]
        return [error for future in ended if (error := future.exception())]

    # A broken pool or a lost connection may only be a consequence: give the cause time to arrive.
    if errors() and not any(isinstance(error, InputError | RunError) for error in errors()):
        wait(futures, timeout=ERROR_GRACE_S)
    for kind in (InputError, RunError, BrokenProcessPool, BaseException):
        error = next((error for error in errors() if isinstance(error, kind)), None)
        if isinstance(error, BrokenProcessPool):
            return RunError("a worker process died, probably out of memory; rerun to resume, or use --processes 1")
        if error is not None:
            return error
    return None


def launch(
    main: _RankMain[_StageConfigT], config: _StageConfigT, processes: int, timeout_s: float = RANK_TIMEOUT_S
) -> None:
    """Run a stage in this process, in `processes` processes of this machine, or as one of torchrun's ranks.

    Raises what `main` raises in a rank; KeyboardInterrupt after a signal, when the last step's checkpoint is written.
    """
    if "offload" in config.memory and device_type(config.device) == "cpu":
        raise InputError(f"{config.stage}: --memory offload has no effect on a CPU; drop it")
    with microbatch_tokens_of(config):
        _launch(main, config, processes, timeout_s)


@contextmanager
def microbatch_tokens_of(config: StageConfig) -> Iterator[None]:
    """Set the tokens per microbatch to the option, or to what an interrupted run found when it was out of memory."""
    record = read_run_record(config.out) if config.resume else None
    is_option_changed = record is not None and record["config"].get("microbatch_tokens") != config.microbatch_tokens
    is_stale = record is None or record.get("finished") or is_option_changed
    recorded = {} if record is None or is_stale else record.get("microbatch_tokens") or {}
    previous = dict(MICROBATCH_TOKENS)
    for device, tokens in previous.items():
        tokens = config.microbatch_tokens or tokens
        MICROBATCH_TOKENS[device] = min(tokens, recorded.get(device, tokens))
    is_set = previous != MICROBATCH_TOKENS
    try:
        yield
    finally:
        if is_set:
            MICROBATCH_TOKENS.update(previous)


def _launch(main: _RankMain[_StageConfigT], config: _StageConfigT, processes: int, timeout_s: float) -> None:
    if _TORCHRUN_ID_ENV in os.environ:
        if processes > 1:
            raise InputError(f"--processes {processes}: torchrun has already started the ranks; drop --processes")
        store, rank, world_size = next(rendezvous("env://", timeout=_RENDEZVOUS_TIMEOUT))
        if tokens := restarted_tokens():
            store = store_after_restart(store)
            MICROBATCH_TOKENS.update(tokens)
            if rank == 0:
                _report_smaller_microbatch(config)
        info = LaunchedRank(rank, world_size, int(os.environ["LOCAL_RANK"]), timeout_s)
        restart_on_oom = config.resume and can_restart()
        _run_rank(info, store, main, config, restart_on_oom=restart_on_oom)
    elif processes == 1:
        if "patience" in config.model_fields_set:
            raise InputError(f"{config.stage}: --patience has no effect with one process; drop it")
        try:
            is_separate = "offload" in config.memory
            with defer_interrupts():
                retry_on_oom(lambda: _start_ranks(main, config, 1, timeout_s) if is_separate else main(config), config)
        finally:
            release_directory_lock(config.out)
    else:
        retry_on_oom(lambda: _start_ranks(main, config, processes, timeout_s), config)


def retry_on_oom(run_stage: Callable[[], object], config: StageConfig) -> None:
    """Run a stage; when out of memory, resume it with half the microbatch tokens, which changes no result."""
    while True:
        try:
            run_stage()
            return
        except Exception as error:
            if not is_out_of_memory(error) or not config.resume or not halve_token_budget():
                raise
        # Outside the handler: the exception's traceback would keep the tensors alive.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _report_smaller_microbatch(config)


def _report_smaller_microbatch(config: StageConfig) -> None:
    message = f"out of memory: resuming with {MICROBATCH_TOKENS[device_type(config.device)]} tokens per microbatch"
    console.print(f"[bold]{escape(config.out.name)}[/] [yellow]{message}[/]", soft_wrap=True)
    record = read_run_record(config.out)
    if record is not None:  # so that a later command resumes with it too
        record["microbatch_tokens"] = dict(MICROBATCH_TOKENS)
        write_text_atomic(config.out / "run.json", json.dumps(record, indent=2) + "\n")


def _start_ranks(main: _RankMain[_StageConfigT], config: _StageConfigT, processes: int, timeout_s: float) -> None:
    # This process holds the rendezvous store: it survives its ranks, so that they can read why one of them failed.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=_RENDEZVOUS_TIMEOUT)
    infos = [LaunchedRank(rank, processes, rank, timeout_s) for rank in range(processes)]
    if processes == 1 and ":" in config.device:  # a single rank (offload) on the chosen GPU
        infos = [LaunchedRank(0, 1, torch.device(config.device).index or 0, timeout_s)]
    tokens = dict(MICROBATCH_TOKENS)
    run_processes(processes, [(_run_local_rank, (info, store.port, tokens, main, config)) for info in infos])


def _run_local_rank(
    info: LaunchedRank,
    port: int,
    microbatch_tokens: dict[str, int],
    main: _RankMain[_StageConfigT],
    config: _StageConfigT,
) -> None:
    MICROBATCH_TOKENS.update(microbatch_tokens)
    _run_rank(info, TCPStore("127.0.0.1", port, is_master=False, timeout=_RENDEZVOUS_TIMEOUT), main, config)


def _run_rank(
    info: LaunchedRank,
    store: Store,
    main: _RankMain[_StageConfigT],
    config: _StageConfigT,
    *,
    restart_on_oom: bool = False,
) -> None:
    """Run a stage in one rank with its process group. Raises SystemExit if another rank reports the error."""
    backend = "gloo"
    if device_type(config.device) == "cuda":
        gpus = torch.cuda.device_count()
        if info.local_rank >= gpus:
            raise InputError(f"rank {info.rank} has no GPU ({gpus} found); start fewer ranks, or use --device cpu")
        torch.cuda.set_device(info.local_rank)
        backend = "cpu:gloo,cuda:nccl"
    monitor = RankMonitor(store, info, restart_program if restart_on_oom else None)
    with defer_interrupts():
        try:
            timeout = timedelta(seconds=info.timeout_s)
            dist.init_process_group(backend, store=store, rank=info.rank, world_size=info.world_size, timeout=timeout)
            set_barrier(monitor.wait_for_ranks if info.world_size > 1 else None)
            main(config)
            barrier()  # a rank that left early would close connections its peers still use
        except KeyboardInterrupt:
            raise KeyboardInterrupt if info.rank == 0 else SystemExit(1) from None  # printed once, by rank 0
        except Exception as error:
            if restart_on_oom and is_out_of_memory(error) and halve_token_budget():
                monitor.restart_all(json.dumps(MICROBATCH_TOKENS))
            raise monitor.resolve_error(error) from error
        finally:
            set_barrier(None)
            # A failed rank keeps its connections and heartbeat: destroying the group here would block on peers, or
            # fail them before the error is known. The parent or torchrun ends the process.
            if info.world_size == 1 or sys.exc_info()[0] is None:
                monitor.stop()
                if dist.is_initialized():
                    dist.destroy_process_group()


def device_type(name: str) -> str:
    """Resolve a --device option to `cpu` or `cuda`."""
    return name.partition(":")[0] if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _init_worker() -> None:
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel  # readable as soon as the parent has ended, however it ended

    def exit_with_parent() -> None:
        wait_for_any([sentinel])
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()


@contextmanager
def _ignore_interrupts() -> Iterator[None]:
    """Ignore SIGINT while spawning: children inherit the disposition, and only the parent reacts to Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous_handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous_handler)
