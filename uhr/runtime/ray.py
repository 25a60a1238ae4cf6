"""Units on Ray Data: on this machine, or on a cluster, whose machines share the plan's folder or are sent the
plan.

Only numbers of units travel through Ray. Each actor owns one killable child (`worker.Worker`), which writes
its parts straight into the plan's folder: pixels in Ray blocks cost nine tenths of the speed, and a crash in
an actor would cost the actor.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
import pickle
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from uhr.base.errors import UserError, install, one_line
from uhr.runtime.cluster import asks_for_token, check, no_cluster, token_error
from uhr.runtime.process import Surroundings
from uhr.runtime.units import Limits, UnitPlan, Work
from uhr.runtime.worker import Worker, cores, search_path

_OBJECT_STORE_BYTES = 128 * 2**20
"""Numbers of units need no room; Ray's default is a third of the machine."""

_MOST_BLOCKS = 10_000


class RayRunner:
    """`workers` actors, one CPU each; `address` names a running cluster, otherwise a Ray of our own is
    started here.

    `gpus`: how many each actor has for itself, and its child sees alone. `carry`: each actor is sent the plan
    and keeps the parts to itself, for work whose results are elsewhere, on machines that share no folder.
    """

    def __init__(
        self,
        workers: int | None,
        limits: Limits,
        address: str | None = None,
        threads: int = 1,
        gpus: int = 0,
        carry: bool = False,
    ) -> None:
        assert workers is None or workers > 0
        self.gpus = gpus
        self.carry = carry
        if importlib.util.find_spec("ray") is None:
            raise UserError("Ray is not installed", f"{install('curate')}, or use --engine local")
        self.workers = workers
        self.limits = limits
        self.address = address
        self.threads = threads

    def run(self, plan: UnitPlan, work: Work, pending: Sequence[int]) -> Iterator[int]:
        with _ray(self.address, self.workers) as (cpus, gpus):
            workers = self._team(cpus, gpus, len(pending))
            yield from self._stream(plan, pickle.dumps(work), pending, workers)

    def _team(self, cpus: int, gpus: int, units: int) -> int:
        """How many actors; a UserError for more than the cluster can hold, which would wait for ever."""
        # a pool that takes every CPU waits for itself: one stays free
        most = max(1, cpus - 1)
        if self.gpus:
            most = min(most, gpus // self.gpus)
        if most == 0:
            raise UserError(f"the Ray cluster has {gpus} GPUs", "--device cpu, or --engine local")
        workers = min(self.workers or most, units)
        if workers > most or workers >= cpus:
            needs = f"{workers + 1} CPUs" + (f" and {workers * self.gpus} GPUs" if self.gpus else "")
            has = f"{cpus}" + (f" and {gpus}" if self.gpus else "")
            raise UserError(
                f"{workers} workers need {needs} and the Ray cluster has {has}", f"--workers {most}"
            )
        return workers

    def _stream(self, plan: UnitPlan, work: bytes, pending: Sequence[int], workers: int) -> Iterator[int]:
        import ray.data

        # Ray gives up a run in which nothing finishes for half an hour; a unit of bad items may take longer
        patience = max(1800.0, 2 * plan.size * self.limits.seconds)
        if math.isinf(patience):
            patience = -1.0  # Ray's word for it
        ray.data.DataContext.get_current().execution_no_progress_timeout_s = patience
        blocks = min(len(pending), _MOST_BLOCKS)
        results = ray.data.from_items(
            [{"unit": unit} for unit in pending], override_num_blocks=blocks
        ).map_batches(
            UnitActor,
            fn_constructor_args=(
                plan.packed() if self.carry else plan.folder.absolute(),
                work,
                self.limits,
                search_path(),
                self.threads,
                os.getcwd(),
            ),
            batch_size=1,
            num_cpus=1,
            num_gpus=self.gpus or None,
            compute=ray.data.ActorPoolStrategy(size=workers),
        )
        for row in results.iter_rows():
            if row["error"] is not None:
                raise pickle.loads(row["error"])
            yield int(row["unit"])


class UnitActor:
    """One Ray actor: takes a unit's number, has its child do the unit, gives the number back.

    `home` is the working folder of the run, which relative paths of the work start from. Where a machine has
    no such folder the child starts in that of the actor, and finds nothing that is named from `home`.
    """

    def __init__(
        self,
        plan: Path | dict[str, bytes],
        work: bytes,
        limits: Limits,
        path: list[str],
        threads: int,
        home: str,
    ) -> None:
        folder = plan if isinstance(plan, Path) else self._unpack(plan)
        ours = search_path()
        both = ours + [folder for folder in path if folder not in ours]
        around = Surroundings(both, threads, folder=home if os.path.isdir(home) else None)
        self._worker = Worker(folder, work, limits, around)

    def _unpack(self, plan: dict[str, bytes]) -> Path:
        self._folder = tempfile.TemporaryDirectory(prefix="uhr-units-")
        for name, data in plan.items():
            Path(self._folder.name, name).write_bytes(data)
        return Path(self._folder.name)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        errors: list[bytes | None] = []
        for unit in batch["unit"]:
            try:
                self._worker.assign(int(unit))
                self._worker.finish()
                errors.append(None)
            except UserError as error:
                # as data: an exception in an actor would reach the user wrapped in Ray's own trace
                errors.append(pickle.dumps(error))
        return {"unit": batch["unit"], "error": errors}


@contextlib.contextmanager
def _ray(address: str | None, workers: int | None) -> Generator[tuple[int, int]]:
    """A quiet Ray, and its numbers of CPUs and GPUs; shut down on the way out if it was started here."""
    os.environ.update(_QUIET)
    import ray
    from ray.data import DataContext

    mine = not ray.is_initialized()
    if mine:
        _start(address, workers)
    try:
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        there = ray.cluster_resources()
        yield int(there.get("CPU", 0)), int(there.get("GPU", 0))
    finally:
        if mine:
            ray.shutdown()


def _start(address: str | None, workers: int | None) -> None:
    import ray
    from ray.exceptions import RayError

    if address is not None:
        check(address)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        with _stderr_kept_back():
            if address is not None:
                ray.init(address, **quiet)
            else:
                cpus = (workers or cores()) + 1
                room: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": _OBJECT_STORE_BYTES}
                ray.init("local", include_dashboard=False, **room, **quiet)
    except UnicodeEncodeError as error:
        # Ray sends the command line of this process along, as text
        what = "Ray does not start from a command whose paths are not UTF-8"
        raise UserError(what, "use --engine local, or give links with plain names") from error
    except (OSError, ValueError, RuntimeError, RayError) as error:
        words = one_line(error)
        if address is None:
            raise UserError(f"Ray does not start here ({words})", "use --engine local") from error
        if asks_for_token(f"{words} {error.__cause__} {getattr(error, '__notes__', '')}"):
            raise token_error(address) from error
        raise no_cluster(address, words) from error


@contextlib.contextmanager
def _stderr_kept_back() -> Generator[None]:
    """Ray's C++ core greets on file descriptor 2 whatever its log level is; if the start fails,
    --debug shows it.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile("w+b") as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except Exception as error:
            kept.seek(0)
            error.add_note(kept.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


_QUIET = {
    # at its own "error" level the core complains of how Ray Data itself starts its actors
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
