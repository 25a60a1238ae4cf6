"""Run units on Ray Data, on this machine or on a cluster.

Only unit numbers pass through Ray. Each actor has one child process (`worker.Worker`), which can be killed
and writes its parts directly into the plan's folder: with pixels in Ray blocks a run had a tenth of the
speed, and a crash would end the actor. The machines of a cluster share the plan's folder, or receive the
plan.
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
from uhr.runtime.cluster import check_cluster, is_token_error, no_cluster, token_error
from uhr.runtime.process import ChildSetup
from uhr.runtime.units import Limits, UnitPlan, Work
from uhr.runtime.worker import Worker, cores, search_path

_OBJECT_STORE_BYTES = 128 * 2**20
"""Unit numbers need little memory; Ray's default is a third of the machine."""

_MOST_BLOCKS = 10_000


class RayRunner:
    """Runs units in Ray actors of one CPU each.

    Args:
        workers: number of actors. None: as many as the cluster can run.
        limits: of each item.
        address: a running cluster. None: start Ray on this machine.
        threads: of each actor's child.
        gpus: GPUs of each actor, which its child alone sees.
        carry: send the plan to each actor, and leave the parts on its machine: for work that stores its
            results elsewhere, on machines without a shared folder.
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
        check_installed()
        self.workers = workers
        self.limits = limits
        self.address = address
        self.threads = threads

    def run(self, plan: UnitPlan, work: Work, pending: Sequence[int]) -> Iterator[int]:
        with running_ray(self.address, self.workers) as (cpus, gpus):
            workers = self._team(cpus, gpus, len(pending))
            yield from self._stream(plan, pickle.dumps(work), pending, workers)

    def _team(self, cpus: int, gpus: int, units: int) -> int:
        """Return the number of actors. Raises UserError if the cluster cannot run them: Ray would wait."""
        # one CPU stays free: a pool that uses all of them deadlocks
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

        # Ray aborts a run in which nothing finishes for half an hour; a unit of bad items may take longer
        timeout = max(1800.0, 2 * plan.size * self.limits.seconds)
        if math.isinf(timeout):
            timeout = -1.0  # Ray's value for no timeout
        ray.data.DataContext.get_current().execution_no_progress_timeout_s = timeout
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
    """One Ray actor: its child processes the units of a batch.

    `run_folder` is the working folder of the run, from which relative paths of the work start. If this
    machine does not have it, the child starts in the actor's folder, and such paths are not found.
    """

    def __init__(
        self,
        plan: Path | dict[str, bytes],
        work: bytes,
        limits: Limits,
        path: list[str],
        threads: int,
        run_folder: str,
    ) -> None:
        folder = plan if isinstance(plan, Path) else self._unpack(plan)
        ours = search_path()
        both = ours + [folder for folder in path if folder not in ours]
        setup = ChildSetup(both, threads, folder=run_folder if os.path.isdir(run_folder) else None)
        self._worker = Worker(folder, work, limits, setup)

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
                # as data: an exception in an actor would be shown with Ray's own traceback
                errors.append(pickle.dumps(error))
        return {"unit": batch["unit"], "error": errors}


def check_installed() -> None:
    """Raise UserError if Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise UserError(
            "Ray is not installed", f"{install('curate')}, or run without it", give={"engine": "local"}
        )


@contextlib.contextmanager
def running_ray(address: str | None, workers: int | None) -> Generator[tuple[int, int]]:
    """Start Ray if it does not run; yield its numbers of CPUs and GPUs; then shut it down."""
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
        check_cluster(address)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        with _stderr_hidden():
            if address is not None:
                ray.init(address, **quiet)
            else:
                cpus = (workers or cores()) + 1
                resources: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": _OBJECT_STORE_BYTES}
                ray.init("local", include_dashboard=False, **resources, **quiet)
    except UnicodeEncodeError as error:
        # Ray sends the command line of this process as text
        what = "Ray does not start from a command whose paths are not UTF-8"
        raise UserError(
            what, "give links with plain names, or run without Ray", give={"engine": "local"}
        ) from error
    except (OSError, ValueError, RuntimeError, RayError) as error:
        message = one_line(error)
        if address is None:
            raise UserError(
                f"Ray does not start here ({message})", "run without it", give={"engine": "local"}
            ) from error
        if is_token_error(f"{message} {error.__cause__} {getattr(error, '__notes__', '')}"):
            raise token_error(address) from error
        raise no_cluster(address, message) from error


@contextlib.contextmanager
def _stderr_hidden() -> Generator[None]:
    """Hide what Ray's C++ core writes to file descriptor 2 at any log level; --debug shows it on failure."""
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
    # at level "error" the core warns about how Ray Data itself starts its actors
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
