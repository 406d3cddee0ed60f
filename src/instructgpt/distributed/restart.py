"""Restart of torchrun's ranks after one ran out of memory: every process executes its program again, in place.

An out-of-memory rank leaves its peers inside a collective that only the end of the process interrupts: an FSDP
all-gather over gloo hangs even after an abort. Exec ends the program and frees its memory, connections and GPU in any
state, but keeps the process id, so that torchrun sees no failure. The ranks meet again under a new prefix of the
agent's store and resume from the last checkpoint with smaller microbatches.

`INSTRUCTGPT_RESTART_ON_OOM=0` switches this off: the ranks end with the error, and the same command, or torchrun's
`--max-restarts`, resumes. Ranks that a stage starts itself (`--processes`) never use it: their parent starts them anew.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

RESTART_SWITCH = "INSTRUCTGPT_RESTART_ON_OOM"
_AGENT_STORE_ENV = "TORCHELASTIC_USE_AGENT_STORE"
_MICROBATCH_TOKENS_ENV = "INSTRUCTGPT_TOKENS_AT_ONCE"
"""Set for the restarted program: the tokens of a microbatch as JSON."""


def can_restart() -> bool:
    """Return whether ranks may restart one by one: torchrun's agent, not rank 0, holds the store."""
    return os.environ.get(RESTART_SWITCH) != "0" and os.environ.get(_AGENT_STORE_ENV) == "True"


def restart_program(microbatch_tokens: str) -> NoReturn:
    """Execute this program again in the same process, with the tokens of a microbatch as JSON, equal on all ranks."""
    sys.stdout.flush()
    sys.stderr.flush()
    # C libraries may open descriptors without close-on-exec. Closing them here would abort the process: gloo's threads
    # still poll theirs until the exec.
    for path in Path("/dev/fd").iterdir():
        with suppress(OSError):  # the descriptor that lists the directory
            os.set_inheritable(int(path.name), int(path.name) <= 2)
    environment = {**os.environ, _MICROBATCH_TOKENS_ENV: microbatch_tokens}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def restarted_tokens() -> dict[str, int] | None:
    """Return the tokens of a microbatch by device if this program was restarted, else None."""
    tokens = os.environ.get(_MICROBATCH_TOKENS_ENV)
    return None if tokens is None else dict(json.loads(tokens))


def store_after_restart(store: Store) -> Store:
    """Return a view of the agent's store that hides the keys and addresses of the programs before the restart."""
    tokens = os.environ.get(_MICROBATCH_TOKENS_ENV)
    return store if tokens is None else PrefixStore(tokens, store)
