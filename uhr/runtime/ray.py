"""Run tasks in Ray actors, on this machine or on a cluster.

A pool of actors per segment; this process gives each free actor its next task. Each actor has one child
process (`worker.Worker`), which can be killed and writes its parts directly into the plan's folder: a crash
must not end the actor, and decoded images in Ray's objects made a run ten times as slow. Only unit numbers
pass through Ray, and what a segment passes on in memory, straight from actor to actor. The machines of a
cluster share the plan's folder, or receive the plan. docs/decisions/0012 says why this is not Ray Data.
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
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from uhr.base.console import warn
from uhr.base.errors import UserError, install, one_line, unknown
from uhr.runtime.cluster.address import check_cluster, is_token_error, no_cluster, token_error
from uhr.runtime.cluster.preflight import FREE_SECONDS, Preflight, check_free
from uhr.runtime.process import ChildSetup
from uhr.runtime.schedule import Schedule
from uhr.runtime.units import Limits, Report, Segment, UnitPlan
from uhr.runtime.worker import Worker, cores, search_path

_OBJECT_STORE_BYTES = 128 * 2**20
"""Unit numbers need little memory; Ray's default is a third of the machine. What segments pass on is added.
"""

_ATTEMPTS = 5
"""How often one task may lose its actor, or the machine of its actor, before the run ends."""

_START = -1
"""What is lost when an actor does not start, in place of the number of a unit; counted until one starts: a
long run may lose any number of machines, one after the other."""


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

    def run(self, plan: UnitPlan, segments: Sequence[Segment], report: Report) -> Iterator[tuple[int, int]]:
        schedule = Schedule(plan, segments)
        with running_ray(self.address, self._cpus_here(segments), self._store(segments)) as (cpus, gpus):
            segments = [s if s.gpus is not None else replace(s, gpus=min(1, gpus)) for s in segments]
            _check_accelerators(segments)
            counts = self._counts(segments, cpus, gpus, schedule.left)
            preflight = None
            if self.address is not None:
                preflight = self._check_cluster(plan, segments, counts)
            pools = [
                _Pool(self, plan, number, segment, *count)
                for number, (segment, count) in enumerate(zip(segments, counts, strict=True))
            ]
            schedule.capacity = 1 + 2 * sum(most for _, most in counts[1:])
            try:
                yield from _run(schedule, pools, report, preflight)
            finally:
                for pool in pools:
                    pool.close()

    def carries(self, plan: UnitPlan) -> bool:
        """Whether each actor has the plan in a folder of its own: its parts go to a store."""
        return self.carry or plan.mirror is not None

    def _check_cluster(
        self, plan: UnitPlan, segments: Sequence[Segment], counts: Sequence[tuple[int, int]]
    ) -> Preflight:
        """Check each machine, and that the least number of workers can start now."""
        pairs = list(zip(segments, counts, strict=True))
        cpus = sum(least * segment.cpus for segment, (least, _) in pairs)
        gpus = sum(
            least * ((self.gpus if segment.workers is None else segment.gpus) or 0)
            for segment, (least, _) in pairs
        )
        check_free(cpus, gpus)
        preflight = Preflight(plan, segments, self.gpus, search_path(), self.carries(plan))
        preflight.check_all()
        return preflight

    def _cpus_here(self, segments: Sequence[Segment]) -> int:
        """The logical CPUs of a Ray of our own: enough for every pool."""
        own = sum(s.workers[1] * s.cpus for s in segments if s.workers is not None)
        shared = (self.workers or cores()) if any(s.workers is None for s in segments) else 0
        return math.ceil(shared + own)

    def _store(self, segments: Sequence[Segment]) -> int:
        """Return the bytes of the object store of a Ray of our own: it must hold all that is passed on at one
        time, since Ray would otherwise write it to disk.
        """
        units = (
            2 + (self.workers or cores()) + sum(3 * s.workers[1] for s in segments if s.workers is not None)
        )
        return _OBJECT_STORE_BYTES + units * sum(segment.passes for segment in segments)

    def _counts(self, segments: Sequence[Segment], cpus: int, gpus: int, units: int) -> list[tuple[int, int]]:
        """Return the least and the largest number of actors of each segment.

        Raises UserError if the cluster cannot run the least of all of them at once: Ray would wait without
        end.
        """
        own = sum(s.workers[0] * s.cpus for s in segments if s.workers is not None)
        own_gpus = sum(s.workers[0] * (s.gpus or 0) for s in segments if s.workers is not None)
        # one CPU stays free, for Ray's own tasks
        most = max(1, int(cpus - 1 - own))
        if self.gpus:
            most = min(most, int((gpus - own_gpus) // self.gpus))
        if most == 0:
            raise UserError(f"the Ray cluster has {gpus} GPUs", "--device cpu, or --engine local")
        shared = [s for s in segments if s.workers is None]
        workers = min(self.workers or most, units)
        wanted = len(shared) * workers + own
        needs_gpus = len(shared) * workers * self.gpus + own_gpus
        if wanted + 1 > cpus or needs_gpus > gpus:
            needs = f"{math.ceil(wanted) + 1} CPUs" + (f" and {needs_gpus:g} GPUs" if needs_gpus else "")
            has = f"{cpus}" + (f" and {gpus}" if needs_gpus else "")
            fix = f"--workers {most}" if not own else "fewer --workers or actors, or a larger cluster"
            raise UserError(f"{_all(workers, segments)} need {needs} and the Ray cluster has {has}", fix)
        return [(workers, workers) if s.workers is None else _within(s.workers, units) for s in segments]


def _check_accelerators(segments: Sequence[Segment]) -> None:
    """Raise UserError if the cluster has no GPU of a required type: Ray would wait without end."""
    import ray

    prefix = "accelerator_type:"
    types = [name.removeprefix(prefix) for name in ray.cluster_resources() if name.startswith(prefix)]
    for segment in segments:
        if segment.accelerator is not None and segment.accelerator not in types:
            raise unknown("accelerator_type", segment.accelerator, types, "the Ray cluster")


def _within(workers: tuple[int, int], units: int) -> tuple[int, int]:
    return min(workers[0], units), min(workers[1], units)


def _all(workers: int, segments: Sequence[Segment]) -> str:
    own = sum(s.workers[0] for s in segments if s.workers is not None)
    return f"{workers} workers" + (f" and {own} actors of model stages" if own else "")


class _Pool:
    """The actors of one segment, between `least` and `most` of them."""

    def __init__(
        self, runner: RayRunner, plan: UnitPlan, number: int, segment: Segment, least: int, most: int
    ) -> None:
        import ray

        place = plan.packed() if runner.carries(plan) else plan.folder.absolute()
        limits, threads = segment.limits or runner.limits, segment.threads or runner.threads
        self.number = number
        self._arguments = (place, pickle.dumps(segment.work), limits, search_path(), threads, os.getcwd())
        self._plan_number = plan.number
        self._options: dict[str, Any] = {
            "num_cpus": segment.cpus,
            "num_gpus": (runner.gpus if segment.workers is None else segment.gpus) or None,
            "max_restarts": -1,
        }
        self.reports = segment.work.reports
        if self.reports:
            # it answers what is done of a task while it does it
            self._options["max_concurrency"] = 2
        if segment.accelerator is not None:
            self._options["accelerator_type"] = segment.accelerator
        self._actor = ray.remote(UnitActor)
        self._least, self._most = least, most
        self._actors: list[Any] = []
        self.idle: list[Any] = []
        self.starting: dict[Any, Any] = {}
        self.checking: dict[Any, tuple[Any, str]] = {}
        self._parked = 0
        for _ in range(least):
            self._start()

    def _start(self) -> None:
        actor: Any = self._actor.options(**self._options).remote(*self._arguments, self._plan_number)
        self._actors.append(actor)
        # until it has answered, it may be waiting for a free GPU
        self.starting[actor.ready.remote()] = actor

    def grow(self, waiting: int) -> None:
        """Start one more actor if tasks are waiting, all actors work, and none is starting."""
        here = len(self._actors) - self._parked
        if waiting and not self.idle and not self.starting and not self.checking and here < self._most:
            self._start()

    def park(self) -> None:
        """Leave an actor on a machine that cannot work without tasks, so that others do not start there, and
        start one more if too few are left.
        """
        self._parked += 1
        if len(self._actors) - self._parked < self._least:
            self._start()

    def close(self) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)


class _Running(NamedTuple):
    """A task in an actor: `passed` will refer to what it passes on."""

    pool: _Pool
    actor: Any
    unit: int
    passed: Any


_REPORT_SECONDS = 2.0
"""Seconds between two requests to the actors for what is done of their tasks."""


def _reported(running: Mapping[Any, _Running], report: Report) -> None:
    """Report what is done of the tasks of actors whose work counts it."""
    import ray
    from ray.exceptions import RayError

    requests = {task.actor.done.remote(): task for task in running.values() if task.pool.reports}
    answered, _ = ray.wait([*requests], num_returns=len(requests), timeout=_REPORT_SECONDS)
    for ref in answered:
        # the task of an actor that is gone says so itself
        with contextlib.suppress(RayError):
            report(requests[ref].pool.number, requests[ref].unit, ray.get(ref))


def _placed(pool: _Pool, actor: Any, node: str, preflight: Preflight | None) -> None:
    """Let an actor work that runs now, unless its machine has joined since the others were checked."""
    if preflight is None or node in preflight.passed:
        pool.idle.append(actor)
    elif node in preflight.faults:
        pool.park()
    else:
        pool.checking[preflight.ask(node)] = actor, node


def _checked(pool: _Pool, ref: Any, preflight: Preflight) -> None:
    """Let an actor work whose machine has been checked, or leave it without tasks."""
    actor, node = pool.checking.pop(ref)
    known = node in preflight.faults
    fault = preflight.answer(node, ref)
    if fault is None:
        pool.idle.append(actor)
        return
    if not known:
        warn(f"{fault}; it gets no work")
    pool.park()


def _run(
    schedule: Schedule, pools: Sequence[_Pool], report: Report, preflight: Preflight | None
) -> Iterator[tuple[int, int]]:
    """Give every free actor its next task until no unit is left; yield segment and unit of each."""
    import ray
    from ray.exceptions import RayError

    running: dict[Any, _Running] = {}
    lost: Counter[int] = Counter()
    while schedule.left:
        # the last segments first: they free what is held in memory
        for pool in reversed(pools):
            while pool.idle and (task := schedule.take(pool.number)) is not None:
                unit, given = task
                actor = pool.idle.pop()
                state, passed = actor.do.options(num_returns=2).remote(unit, given)
                running[state] = _Running(pool, actor, unit, passed)
            pool.grow(schedule.waiting(pool.number))
        starting = {ref: (pool, actor) for pool in pools for ref, actor in pool.starting.items()}
        checking = {ref: pool for pool in pools for ref in pool.checking}
        reporting = any(task.pool.reports for task in running.values())
        stuck = preflight is not None and bool(preflight.faults) and not running and not checking
        timeout = _REPORT_SECONDS if reporting else FREE_SECONDS if stuck else None
        done, _ = ray.wait([*running, *starting, *checking], num_returns=1, timeout=timeout)
        if not done and stuck and preflight is not None:
            raise next(iter(preflight.faults.values()))
        if not done:
            _reported(running, report)
        for ref in done:
            if ref in checking and preflight is not None:
                _checked(checking[ref], ref, preflight)
                continue
            if ref in starting:
                pool, actor = starting[ref]
                del pool.starting[ref]
                try:
                    node = ray.get(ref)
                except RayError as fault:
                    lost[_START] += 1
                    if lost[_START] == _ATTEMPTS:
                        what = f"a worker cannot start on the Ray cluster ({one_line(fault)[-200:]})"
                        raise UserError(what, "install the same version of uhr on every machine") from fault
                    pool.starting[actor.ready.remote()] = actor
                else:
                    lost[_START] = 0
                    _placed(pool, actor, node, preflight)
                continue
            task = running.pop(ref)
            try:
                error, passes = ray.get(ref)
            except RayError as fault:
                # the actor's process or machine is gone, or what it was given; Ray starts the actor again
                lost[task.unit] += 1
                if lost[task.unit] == _ATTEMPTS:
                    what = f"unit {task.unit} lost its worker {_ATTEMPTS} times ({one_line(fault)[-200:]})"
                    raise UserError(what, "look at the machines of the cluster") from fault
                schedule.again(task.unit)
                task.pool.starting[task.actor.ready.remote()] = task.actor
                continue
            if error is not None:
                raise pickle.loads(error)
            task.pool.idle.append(task.actor)
            schedule.done(task.pool.number, task.unit, task.passed if passes else None)
            yield task.pool.number, task.unit


class UnitActor:
    """One Ray actor: its child does one task at a time.

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
        number: int = 1,
    ) -> None:
        folder = plan if isinstance(plan, Path) else self._unpack(plan)
        ours = search_path()
        both = ours + [folder for folder in path if folder not in ours]
        setup = ChildSetup(both, threads, folder=run_folder if os.path.isdir(run_folder) else None)
        self._worker = Worker((folder, number), work, limits, setup)

    def _unpack(self, plan: dict[str, bytes]) -> Path:
        self._folder = tempfile.TemporaryDirectory(prefix="uhr-units-")
        for name, data in plan.items():
            Path(self._folder.name, name).write_bytes(data)
        return Path(self._folder.name)

    def ready(self) -> str:
        """Return the id of the node on which the actor has been placed."""
        import ray

        return ray.get_runtime_context().get_node_id()

    def done(self) -> int:
        """Return how many items of the present task are done."""
        return self._worker.done

    def do(self, unit: int, given: Any) -> tuple[tuple[bytes | None, bool], Any]:
        """Do one task. Return its error or None and whether it passes something on; and what it passes on."""
        try:
            self._worker.assign(unit, given)
            self._worker.finish()
        except UserError as error:
            # as data: an exception in an actor would be shown with Ray's own traceback
            return (pickle.dumps(error), False), None
        except BaseException:
            # the driver gives the unit to an actor again, perhaps to this one: it must be free
            self._worker.close()
            raise
        passed, self._worker.passed = self._worker.passed, None
        return (None, passed is not None), None if passed is None else memoryview(passed)


def check_installed() -> None:
    """Raise UserError if Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise UserError(
            "Ray is not installed", f"{install('curate')}, or run without it", give={"engine": "local"}
        )


@contextlib.contextmanager
def running_ray(
    address: str | None, workers: int | None, store: int = _OBJECT_STORE_BYTES
) -> Generator[tuple[int, int]]:
    """Start Ray if it does not run; yield its numbers of CPUs and GPUs; then shut it down.

    A Ray of our own has a CPU for each of `workers` and one more, and an object store of `store` bytes.
    """
    os.environ.update(_QUIET)
    import ray

    mine = not ray.is_initialized()
    if mine:
        _start(address, workers, store)
    try:
        logging.getLogger("ray").setLevel(logging.ERROR)
        there = ray.cluster_resources()
        yield int(there.get("CPU", 0)), int(there.get("GPU", 0))
    finally:
        if mine:
            ray.shutdown()


def _start(address: str | None, workers: int | None, store: int = _OBJECT_STORE_BYTES) -> None:
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
                resources: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": store}
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
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
