"""Which prompts are held out: decided by the prompt's text alone, so that adding data never moves one."""

from __future__ import annotations

import hashlib


def held_out(text: str, one_in: int = 10) -> bool:
    """Whether a prompt belongs to the held-out tenth: the first four bytes of its sha256, as a number, divide by ten."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:4], "big") % one_in == 0
