"""How many threads a worker process computes with."""

from __future__ import annotations

import os


def threads_given() -> int | None:
    """Return the number of threads in OMP_NUM_THREADS, the first if it is a list.

    None if the variable is not set or is not a positive number, in which case OpenMP ignores it too.
    """
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(text) if text.isdecimal() and int(text) > 0 else None


def threads_each(workers: int) -> int:
    """Return the threads for each of `workers` processes: OMP_NUM_THREADS if it is set, else an equal share
    of torch's threads in this process, at least 1.
    """
    given = threads_given()
    return given if given is not None else max(1, threads_here() // max(1, workers))


def threads_here() -> int:
    """Return the number of threads that torch uses in this process."""
    import torch

    return torch.get_num_threads()
