"""Where units run: in this process, in worker processes of our own, or on Ray."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, get_args

from uhr.base.errors import UserError, unknown
from uhr.runtime.inline import InlineRunner
from uhr.runtime.local import LocalRunner
from uhr.runtime.ray import RayRunner
from uhr.runtime.threads import threads_each
from uhr.runtime.units import Limits, Runner
from uhr.runtime.worker import cores

__all__ = ["Engine", "InlineRunner", "LocalRunner", "Pool", "RayRunner", "visible_gpus"]

Engine = Literal["ray", "local"]


@dataclass(frozen=True)
class Pool:
    """The workers that a user asked for.

    Args:
        engine: ray, or local for worker processes of our own.
        workers: their number. None: as many as the machine, or the cluster, has place for. 0: none, the work
            is done in this process.
        address: a running Ray cluster. None: this machine.
    """

    engine: Engine = "ray"
    workers: int | None = None
    address: str | None = None

    @classmethod
    def of(cls, engine: str, workers: int | None, address: str | None) -> Pool:
        """The pool of a command's options. Raises UserError for an unknown engine, and for an address where
        nothing runs on Ray.
        """
        if engine != "ray" and engine != "local":
            raise unknown("engine", engine, get_args(Engine), "--engine")
        if address is not None and (engine != "ray" or workers == 0):
            raise UserError("--address names a Ray cluster", "leave out --engine local and --workers 0")
        return cls(engine, workers, address)

    def runner(
        self, limits: Limits, threads: int | None = 1, device: str = "cpu", carry: bool = False
    ) -> Runner:
        """The runner for these workers.

        Args:
            limits: of each item.
            threads: of each worker. None: OMP_NUM_THREADS, or an equal share of this machine's
                (`threads_each`), so that one worker takes all of them.
            device: "cuda" gives each worker a GPU of its own; a worker on any other device sees what this
                process sees.
            carry: see `RayRunner`.

        Where no number of workers is given, it is that of the GPUs for "cuda"; else of the cores, or 1 if one
        worker takes them all.
        """
        if self.workers == 0:
            return InlineRunner()
        shared = device == "cuda"
        gpus = visible_gpus() if shared else ()
        usual = (len(gpus) if shared else 1 if threads is None else cores()) or 1
        # a cluster has as many GPUs, or cores, as it says when the run starts
        counts_itself = self.address is not None and (shared or threads is not None)
        count = self.workers or (None if counts_itself else usual)
        each = threads if threads is not None else threads_each(count or usual)
        if self.engine == "local":
            assert count is not None
            return LocalRunner(count, limits, each, gpus)
        return RayRunner(count, limits, self.address, each, gpus=int(shared), carry=carry)


def visible_gpus() -> tuple[str, ...]:
    """The GPUs of this process, by the names that CUDA_VISIBLE_DEVICES takes."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return tuple(name.strip() for name in given.split(",") if name.strip())
    return tuple(map(str, range(torch.cuda.device_count())))
