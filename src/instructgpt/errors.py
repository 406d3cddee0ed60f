"""The two ways a command ends badly. Each message is one line: what, where, and how to mend it."""


class InputError(Exception):
    """Something the user gave is wrong: a file, a flag, a directory. The command exits with code 2."""


class RunError(Exception):
    """A run went wrong and was stopped; the message names the likely cause. The command exits with code 1."""


def one_line(error: object, max_length: int | None = None) -> str:
    """What an error says, on one line; at most so many characters of it."""
    return " ".join(str(error).split())[:max_length]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, whichever library says so."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )
