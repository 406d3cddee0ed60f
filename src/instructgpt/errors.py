"""The two exceptions that end a command. A message is one line: what, where, and what to do."""


class InputError(Exception):
    """A file, flag or directory from the user is wrong. The command exits with code 2."""


class RunError(Exception):
    """A run failed or was stopped; the message names the likely cause. The command exits with code 1."""


def one_line(error: object, max_length: int | None = None) -> str:
    return " ".join(str(error).split())[:max_length]


def is_out_of_memory(error: BaseException) -> bool:
    """Recognize Python's, CUDA's and PyTorch's CPU allocator's out-of-memory errors."""
    type_matches = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return type_matches or "can't allocate memory" in str(error)
