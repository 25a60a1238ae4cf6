"""Units of work: a fixed division of the items, one atomic part per unit, and runs that can be resumed.

A run over many items (images to curate, rows to encode) is divided into units of consecutive items, and the
division is written to disk before anything runs. Each unit becomes one part, complete or absent, whose name
has the unit's number and the plan's fingerprint: a rerun skips it, a retry writes the same bytes, nothing is
counted twice. Runners (`uhr.runtime.pool`) distribute units over processes.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import pyarrow as pa

from uhr.base import parquet
from uhr.base.arrow import one_batch, table_hash
from uhr.base.config import fingerprint as fingerprint_of
from uhr.base.console import Advance
from uhr.base.errors import UserError
from uhr.base.files import atomic, write_json
from uhr.base.locks.run_lock import NAME as LOCK
from uhr.runtime.mirror import FILE, Mirror

TIME_LIMIT, MEMORY_LIMIT, CRASH = "time limit", "memory limit", "crash"
"""The kinds of `UnitFault`: why an item is not processed again."""

FILES = r"plan(-\d+)?\.json|items(-\d+)?\.arrow|unit-\d+-[0-9a-f]{16}\.parquet|mirror\.json"
"""Regular expression of the file names of plans and their parts."""


BATCH = -2
"""The item that `Watch.batch` records: several items at once."""


@dataclass(frozen=True)
class Limits:
    """Limits of an item, and of the process that works on it."""

    seconds: float = 60.0
    """Wall time per item, without time in which the machine was suspended."""
    memory: int = 4 * 2**30
    """Resident bytes per worker process."""


NO_LIMITS = Limits(math.inf, 2**62)
"""For work whose items may take any time and memory, such as generating images."""


class UnitFault(NamedTuple):
    """An item ended the process that worked on it.

    `kind` is `TIME_LIMIT`, `MEMORY_LIMIT` or `CRASH`; `message` describes it; `step` is the step of
    `Watch.begin` in which it happened.
    """

    kind: str
    message: str
    step: int = 0


class Watch:
    """Records which item a `Work` is about to process, so that an item that kills its worker is known."""

    def __init__(self, faults: dict[int, UnitFault] | None = None) -> None:
        self._faults = faults or {}

    def begin(self, index: int, step: int = 0) -> UnitFault | None:
        """Record that item `index` of the unit begins `step`. The steps of an item increase; a part of a step
        may have the number before it, so that a fault tells it apart.

        Returns a fault if the item ended an earlier attempt in this step or an earlier one: it must not be
        processed again.
        """
        self._record(index, step)
        fault = self._faults.get(index)
        return fault if fault is not None and step >= fault.step else None

    def batch(self, count: int, step: int) -> bool:
        """Record that `count` items begin `step` together.

        Returns False if such a batch of the unit ended an earlier attempt in this step or an earlier one. The
        items must then be processed one by one, each after its own `begin`, so that the one at fault is
        found.
        """
        fault = self._faults.get(BATCH)
        if fault is not None and step >= fault.step:
            return False
        self._record(BATCH, step, count)
        return True

    def end(self) -> None:
        """Record that no item is being processed: a crash after this is not the fault of an item."""
        self._record(-1, 0)

    def done(self, count: int) -> None:
        """Report that the first `count` items of the unit are done, for the progress that is shown. Work that
        does so sets `TaskWork.reports`.
        """

    def _record(self, index: int, step: int, count: int = 1) -> None:
        """Store the current item (-1: none, BATCH: `count` of them) and step. Overridden where another
        process observes this one."""


class TaskWork(ABC):
    """The work of one segment on a unit. Picklable; each worker process has one instance.

    A task is a pure function of the unit's items and the parts of earlier segments: it writes the same part
    on any machine and after any other task. It handles the faults of items itself: an exception that it
    raises stops the whole run.
    """

    reports: ClassVar[bool] = False
    """Whether it calls `Watch.done`: its items take so long that a unit of them is silent for minutes."""

    def open(self) -> None:  # noqa: B027 - most kinds of work have nothing to open
        """Called once per process before the first task: load weights, compile kernels."""

    def libraries(self) -> Collection[str]:
        """Return the packages whose versions decide the values of the work, besides those of uhr itself."""
        return ()

    def facts(self, plan: UnitPlan) -> Any:
        """Return what `check` compares other machines with; called where a run on a cluster starts."""
        return None

    @property
    def check_seconds(self) -> float:
        """Longest time that `check` may take: it may hash files, or fetch what the machine lacks."""
        return 600.0

    def check(self, facts: Any) -> None:  # noqa: B027 - most kinds of work need nothing
        """Raise UserError if this machine cannot do the work. Called before the first task, once on each
        machine of a cluster that may get tasks, with what `facts` has returned. It may fetch what is lacking.
        """

    @abstractmethod
    def do(self, plan: UnitPlan, unit: int, watch: Watch, given: bytes | None) -> bytes | None:
        """Do one task and write its part with `plan.write`.

        given: what the task of the first segment returned for this unit, if `Segment.takes` is set.
        Returns what later segments of the unit need in memory, or None; only that of the first segment is
        passed on.
        """


class Work(TaskWork):
    """Work of a single segment: `run` makes the part of a unit from its items alone."""

    @abstractmethod
    def run(self, items: pa.Table, watch: Watch) -> pa.Table:
        """Process one unit and return its part, with the same schema for every unit."""

    def do(self, plan: UnitPlan, unit: int, watch: Watch, given: bytes | None) -> bytes | None:
        part = self.run(plan.items(unit), watch)
        watch.end()
        plan.write(unit, part)
        return None


@dataclass(frozen=True)
class Segment:
    """One of the tasks that are done for each unit, in this order, and the workers that do it.

    Args:
        work: what a task does.
        limits: of each item. None: those of the runner.
        workers: the least and the largest number of workers. None: the number of the runner.
        cpus: of each worker, on Ray; may be a fraction.
        gpus: of each worker; may be a fraction. None: one if there is any.
        accelerator: the type of GPU that a cluster must give, by Ray's name ("H100").
        threads: of each worker. None: those of the runner.
        takes: whether its tasks need what the first segment passes on in memory.
        passes: whether its tasks pass something on, and at most how many bytes for a unit; 0 if nothing.
    """

    work: TaskWork
    limits: Limits | None = None
    workers: tuple[int, int] | None = None
    cpus: float = 1.0
    gpus: float | None = 0.0
    accelerator: str | None = None
    threads: int | None = None
    takes: bool = False
    passes: int = 0


class PlanMismatch(UserError):
    """The folder has a plan of other items (`changed` is "inputs") or of other work ("work")."""

    def __init__(self, what: str, fix: str | None, changed: str = "inputs") -> None:
        super().__init__(what, fix)
        self.changed = changed


@dataclass(frozen=True)
class UnitPlan:
    """The division of `rows` items into units of `size`, stored in `folder` as plan.json and items.arrow.

    With `starts`, the units begin at these items, and are of about that size. `number` tells several plans of
    one folder apart: those after the first are stored as plan-2.json and items-2.arrow, and so on.
    """

    folder: Path
    rows: int
    size: int
    items_hash: str
    fingerprint: str
    """Hash of the work (code, parameters); `items_hash` is that of the items."""
    starts: tuple[int, ...] | None = None
    number: int = 1
    segments: int = 1
    """Number of tasks of each unit."""

    @classmethod
    def create(
        cls,
        folder: Path,
        items: pa.Table,
        size: int,
        fingerprint: str,
        together: str | None = None,
        number: int = 1,
        segments: int = 1,
    ) -> UnitPlan:
        """Write the plan for these items, or open the one in `folder` if it is for the same items and work.

        together: a column; neighbouring items with one value of it are in one unit, even if there are more of
        them than `size`. Raises PlanMismatch if the folder has a plan for other items or other work.
        """
        assert size > 0
        found = table_hash(items)
        if cls.exists(folder, number):
            plan = cls.open(folder, number)
            fix = "name another folder, or remove this one"
            if plan.items_hash != found:
                raise PlanMismatch(f"{folder} contains a run over other inputs", fix, "inputs")
            if plan.fingerprint != fingerprint:
                raise PlanMismatch(f"{folder} contains a run of other work", fix, "work")
            return plan
        starts = None if together is None else _starts(items[together].to_pylist(), size)
        plan = cls(folder, items.num_rows, size, found, fingerprint, starts, number, segments)
        with (
            atomic(folder / _named("items.arrow", number)) as temporary,
            open(temporary, "wb") as file,
            pa.ipc.new_file(file, items.schema) as writer,
        ):
            for unit in range(plan.count):
                start = plan._start(unit)
                writer.write_batch(one_batch(items.slice(start, plan._start(unit + 1) - start)))
        # plan.json last: a run that was killed here has no plan, and is divided again
        tree: dict[str, Any] = {
            "rows": plan.rows,
            "size": size,
            "items_hash": found,
            "fingerprint": fingerprint,
        }
        if starts is not None:
            tree["starts"] = starts
        if segments > 1:
            tree["segments"] = segments
        write_json(folder / _named("plan.json", number), tree)
        if plan.mirror is not None:
            for name in (*plan.side_files(), _named("plan.json", number)):
                plan.mirror.push(name)
        return plan

    @classmethod
    def open(cls, folder: Path, number: int = 1) -> UnitPlan:
        """Open the plan in `folder`. Raises UserError if there is none."""
        if not cls.exists(folder, number):
            raise UserError(f"{folder} contains no plan of units", "start the run again")
        tree = json.loads((folder / _named("plan.json", number)).read_text(encoding="utf-8"))
        starts = tree.pop("starts", None)
        return cls(folder, **tree, starts=None if starts is None else tuple(starts), number=number)

    @staticmethod
    def exists(folder: Path, number: int = 1) -> bool:
        return (folder / _named("plan.json", number)).exists()

    def mark(self) -> tuple[str, str, bytes]:
        """Return folder, name and content of plan.json, by which another machine knows the same folder."""
        name = _named("plan.json", self.number)
        return str(self.folder.absolute()), name, (self.folder / name).read_bytes()

    def packed(self) -> dict[str, bytes]:
        """Return the plan's files by name. Written to a folder of another machine, they are the same plan."""
        names = {_named(name, self.number) for name in ("items.arrow", "plan.json")}
        names |= {FILE, *self.side_files()} if self.mirror is not None else set()
        return {name: (self.folder / name).read_bytes() for name in sorted(names)}

    @cached_property
    def mirror(self) -> Mirror | None:
        """The copy of the folder in an object store, if it has one."""
        return Mirror.of(self.folder)

    def side_files(self) -> list[str]:
        """Return the names of the folder's files besides plan.json and parts: what the work reads."""
        found = sorted(entry.name for entry in self.folder.iterdir() if entry.is_file())
        apart = re.compile(rf"plan(-\d+)?\.json|unit-.*|\..*|{re.escape(FILE)}|{LOCK}")
        return [name for name in found if apart.fullmatch(name) is None]

    @property
    def count(self) -> int:
        """Number of units."""
        return -(-self.rows // self.size) if self.starts is None else len(self.starts)

    def rows_in(self, unit: int) -> int:
        """Return the number of items in a unit."""
        return self._start(unit + 1) - self._start(unit)

    def _start(self, unit: int) -> int:
        """The first item of a unit; the number of items for the one after the last."""
        if self.starts is None:
            return min(unit * self.size, self.rows)
        return self.starts[unit] if unit < len(self.starts) else self.rows

    def items(self, unit: int) -> pa.Table:
        """Read the items of a unit, without the others."""
        return pa.Table.from_batches([self._reader.get_batch(unit)])

    @cached_property
    def _reader(self) -> pa.ipc.RecordBatchFileReader:
        return parquet.batches(self.folder / _named("items.arrow", self.number))

    @cached_property
    def _suffixes(self) -> dict[int, str]:
        """What the names of the parts of each segment end with, as far as they were used."""
        return {}

    def _suffix(self, segment: int) -> str:
        if segment not in self._suffixes:
            division = [self.size] if self.starts is None else [self.size, self.starts]
            where = [self.number, segment] if (self.number, segment) != (1, 0) else []
            tree = [self.fingerprint, self.items_hash, *division, *where]
            self._suffixes[segment] = fingerprint_of(tree)[:16]
        return self._suffixes[segment]

    def _path(self, unit: int, segment: int) -> Path:
        return self.folder / f"unit-{unit:07d}-{self._suffix(segment)}.parquet"

    def part(self, unit: int, segment: int = 0) -> Path:
        """Return the path of the part that a segment writes for a unit; fetched, if only the store has it."""
        path = self._path(unit, segment)
        if self.mirror is not None and not path.exists():
            self.mirror.fetch(path.name)
        return path

    def discard(self, unit: int, segment: int = 0) -> None:
        """Remove a part, so that its task is done again."""
        path = self._path(unit, segment)
        if self.mirror is not None:
            self.mirror.remove(path.name)
        path.unlink(missing_ok=True)

    def finished(self, segment: int = 0) -> set[int]:
        """Return the units whose parts of this segment exist."""
        pattern = re.compile(rf"unit-(\d+)-{self._suffix(segment)}\.parquet")
        found = (pattern.fullmatch(entry.name) for entry in self.folder.iterdir())
        return {int(match[1]) for match in found if match}

    def complete(self) -> set[int]:
        """Return the units whose parts of all segments exist."""
        return set.intersection(*(self.finished(number) for number in range(self.segments)))

    def remove(self) -> None:
        """Remove the plan and all of its parts. The plan goes first: without it they are of no run."""
        for name in ("plan.json", "items.arrow"):
            if self.mirror is not None:
                self.mirror.remove(_named(name, self.number))
            (self.folder / _named(name, self.number)).unlink(missing_ok=True)
        for segment in range(self.segments):
            for unit in self.finished(segment):
                self.discard(unit, segment)

    def write(self, unit: int, part: pa.Table, segment: int = 0) -> None:
        """Write a part atomically."""
        path = self._path(unit, segment)
        with atomic(path) as temporary:
            parquet.write(temporary, part, compression="zstd", compression_level=1)
        if self.mirror is not None:
            self.mirror.push(path.name)


def _named(file: str, number: int) -> str:
    """Return the name of a plan's file in a folder that may have several plans."""
    stem, dot, suffix = file.partition(".")
    return file if number == 1 else f"{stem}-{number}{dot}{suffix}"


def _starts(values: Sequence[Any], size: int) -> tuple[int, ...]:
    """The first items of units of at most `size` items that do not part neighbours of equal value."""
    starts, group = [0] if values else [], 0
    for place in range(1, len(values) + 1):
        if place == len(values) or values[place] != values[place - 1]:
            # the group [group, place) is complete: it begins a unit if it does not fit into the last one
            if place - starts[-1] > size and group > starts[-1]:
                starts.append(group)
            group = place
    return tuple(starts)


Report = Callable[[int, int, int], None]
"""`report(segment, unit, done)`: so many items of a task that is not finished are done."""


class Runner(Protocol):
    """Distributes tasks over processes."""

    def run(self, plan: UnitPlan, segments: Sequence[Segment], report: Report) -> Iterator[tuple[int, int]]:
        """Do every task that has no part yet; those of one unit in the order of the segments, units in any.

        Yields segment and unit of each task when its part is written. `report` is called meanwhile with what
        `Watch.done` was called with.
        """
        ...


def run_units(
    plan: UnitPlan,
    work: Work,
    runner: Runner,
    advance: Advance,
    note: Callable[[int], str] | None = None,
) -> None:
    """Process every unit of the plan that is not finished; see `run_tasks`."""
    run_tasks(plan, (Segment(work),), runner, advance, note)


def run_tasks(
    plan: UnitPlan,
    segments: Sequence[Segment],
    runner: Runner,
    advance: Advance,
    note: Callable[[int], str] | None = None,
) -> None:
    """Do the tasks of all segments for every unit of the plan, except those that are finished.

    `advance` is called with numbers of items, first those of finished units; `note(unit)` returns the text
    after the progress bar. Raises UserError with the unit's number if the work raises.
    """
    finished = set.intersection(*(plan.finished(number) for number in range(len(segments))))
    if finished:
        advance(sum(map(plan.rows_in, finished)), f"{len(finished)} units were finished before")
    if len(finished) == plan.count:
        return
    last, partly = len(segments) - 1, dict[int, int]()

    def report(segment: int, unit: int, count: int) -> None:
        # a task that starts again, after its worker died, is shown no earlier than it was
        if segment == last and count > (before := partly.get(unit, 0)):
            partly[unit] = count
            advance(count - before)

    with contextlib.closing(_closable(runner.run(plan, segments, report))) as done:
        for segment, unit in done:
            if segment == last:
                advance(plan.rows_in(unit) - partly.pop(unit, 0), note(unit) if note else None)


def _closable(tasks: Iterator[tuple[int, int]]) -> Generator[tuple[int, int], None, None]:
    """A generator around any iterator, so that leaving early closes the runner's own generator."""
    yield from tasks
