"""Choose where units run: in this process, in local worker processes, or on Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from uhr.base.errors import UserError, unknown
from uhr.runtime.gpus import visible_gpus
from uhr.runtime.inline import InlineRunner
from uhr.runtime.local import LocalRunner
from uhr.runtime.ray import RayRunner
from uhr.runtime.threads import threads_each
from uhr.runtime.units import Limits, Runner
from uhr.runtime.worker import cores

__all__ = ["EngineName", "InlineRunner", "LocalRunner", "Pool", "RayRunner", "visible_gpus"]

EngineName = Literal["ray", "local"]


@dataclass(frozen=True)
class Pool:
    """The requested workers.

    Args:
        engine: ray, or local for worker processes of uhr's own.
        workers: their number. None: as many as the machine or the cluster can run. 0: the work is done in
            this process.
        address: a running Ray cluster. None: this machine.
    """

    engine: EngineName = "ray"
    workers: int | None = None
    address: str | None = None

    @classmethod
    def of(cls, engine: str, workers: int | None, address: str | None) -> Pool:
        """Make the pool of a command's options.

        Raises UserError if the engine is unknown, or if an address is set and nothing runs on Ray.
        """
        if engine != "ray" and engine != "local":
            raise unknown("engine", engine, get_args(EngineName), "--engine")
        if address is not None and (engine != "ray" or workers == 0):
            raise UserError("--address names a Ray cluster", "leave out --engine local and --workers 0")
        return cls(engine, workers, address)

    def runner(
        self, limits: Limits, threads: int | None = 1, device: str = "cpu", carry: bool = False
    ) -> Runner:
        """Return the runner for these workers.

        Args:
            limits: of each item.
            threads: of each worker. None: OMP_NUM_THREADS, or an equal share of this machine's
                (`threads_each`), so that one worker takes all of them.
            device: "cuda" gives each worker a GPU of its own; on any other device a worker sees the same GPUs
                as this process.
            carry: see `RayRunner`.

        The default number of workers is the number of GPUs for "cuda"; else the number of cores, or 1 if one
        worker uses all of them.
        """
        if self.workers == 0:
            return InlineRunner()
        shared = device == "cuda"
        gpus = visible_gpus() if shared else ()
        usual = (len(gpus) if shared else 1 if threads is None else cores()) or 1
        # the GPUs or cores of a cluster are counted when the run starts
        counts_itself = self.address is not None and (shared or threads is not None)
        count = self.workers or (None if counts_itself else usual)
        each = threads if threads is not None else threads_each(count or usual)
        if self.engine == "local":
            assert count is not None
            return LocalRunner(count, limits, each, gpus)
        return RayRunner(count, limits, self.address, each, gpus=int(shared), carry=carry)
