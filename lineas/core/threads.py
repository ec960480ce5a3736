"""How many threads a kernel gets."""

import os

import torch

_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


SMALL = 1 << 15  # numbers; for fewer, waking other threads costs more than they save


def thread_count(threads: int | None = None, work: int = SMALL) -> int:
    """Threads for a kernel over so many numbers: what was asked, else torch's number, or 1 where the work is small.

    Always 1 in a forked child, where GNU OpenMP hangs.
    """
    if _forked:
        return 1
    if threads is None:
        return torch.get_num_threads() if work >= SMALL else 1
    return threads
