"""How many threads a worker process computes with."""

from __future__ import annotations

import os


def threads_given() -> int | None:
    """The number in OMP_NUM_THREADS, which OpenMP takes for each process: the first of a list. None where the
    variable is not set or holds no positive number; OpenMP does not heed it then either."""
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(text) if text.isdecimal() and int(text) > 0 else None


def threads_each(workers: int) -> int:
    """Threads for each of `workers` processes on this machine: those that are given, or else an equal share
    of what torch takes in this process, and one at least."""
    given = threads_given()
    return given if given is not None else max(1, threads_here() // max(1, workers))


def threads_here() -> int:
    """Threads with which torch computes in this process."""
    import torch

    return torch.get_num_threads()
