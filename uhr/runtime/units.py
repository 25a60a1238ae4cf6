"""Units of work: a fixed division of the items, one atomic part per unit, and runs that can be resumed.

A run over many items (images to curate, rows to encode) is divided into units of consecutive items, and the
division is written to disk before anything runs. Each unit becomes one part, complete or absent, whose name
has the unit's number and the plan's fingerprint: a rerun skips it, a retry writes the same bytes, nothing is
counted twice. Runners (`uhr.runtime.pool`) distribute units over processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from uhr.base import parquet
from uhr.base.config import fingerprint as fingerprint_of
from uhr.base.console import Advance
from uhr.base.errors import UserError
from uhr.base.files import atomic, write_json

TIME_LIMIT, MEMORY_LIMIT, CRASH = "time limit", "memory limit", "crash"
"""The kinds of `UnitFault`: why an item is not processed again."""

FILES = r"plan\.json|items\.arrow|unit-\d+-[0-9a-f]{16}\.parquet"
"""Regular expression of the file names of a plan and its parts."""


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
        """Record that item `index` of the unit begins `step`. The steps of an item increase.

        Returns a fault if the item ended an earlier attempt in this step or an earlier one: it must not be
        processed again.
        """
        self._record(index, step)
        fault = self._faults.get(index)
        return fault if fault is not None and step >= fault.step else None

    def end(self) -> None:
        """Record that no item is being processed: a crash after this is not the fault of an item."""
        self._record(-1, 0)

    def _record(self, index: int, step: int) -> None:
        """Store the current item (-1: none) and step. Overridden where another process observes this one."""


class Work(ABC):
    """The work on a unit. Picklable; each worker process has one instance.

    `run` must return the same table for the same items, on any machine and after any other unit. It handles
    the faults of items itself: an exception that it raises stops the whole run.
    """

    def open(self) -> None:  # noqa: B027 - most kinds of work have nothing to open
        """Called once per process before the first unit: load weights, compile kernels."""

    @abstractmethod
    def run(self, items: pa.Table, watch: Watch) -> pa.Table:
        """Process one unit and return its part, with the same schema for every unit."""


class PlanMismatch(UserError):
    """The folder has a plan of other items (`changed` is "inputs") or of other work ("work")."""

    def __init__(self, what: str, fix: str | None, changed: str = "inputs") -> None:
        super().__init__(what, fix)
        self.changed = changed


@dataclass(frozen=True)
class UnitPlan:
    """The division of `rows` items into units of `size`, stored in `folder` as plan.json and items.arrow.

    With `starts`, the units begin at these items, and are of about that size.
    """

    folder: Path
    rows: int
    size: int
    items_hash: str
    fingerprint: str
    """Hash of the work (code, parameters); `items_hash` is that of the items."""
    starts: tuple[int, ...] | None = None

    @classmethod
    def create(
        cls, folder: Path, items: pa.Table, size: int, fingerprint: str, together: str | None = None
    ) -> UnitPlan:
        """Write the plan for these items, or open the one in `folder` if it is for the same items and work.

        together: a column; neighbouring items with one value of it are in one unit, even if there are more of
        them than `size`. Raises PlanMismatch if the folder has a plan for other items or other work.
        """
        assert size > 0
        found = table_hash(items)
        if cls.exists(folder):
            plan = cls.open(folder)
            fix = "name another folder, or remove this one"
            if plan.items_hash != found:
                raise PlanMismatch(f"{folder} contains a run over other inputs", fix, "inputs")
            if plan.fingerprint != fingerprint:
                raise PlanMismatch(f"{folder} contains a run of other work", fix, "work")
            return plan
        starts = None if together is None else _starts(items[together].to_pylist(), size)
        plan = cls(folder, items.num_rows, size, found, fingerprint, starts)
        with (
            atomic(folder / "items.arrow") as temporary,
            open(temporary, "wb") as file,
            pa.ipc.new_file(file, items.schema) as writer,
        ):
            for unit in range(plan.count):
                start = plan._start(unit)
                writer.write_batch(_one_batch(items.slice(start, plan._start(unit + 1) - start)))
        # plan.json last: a run that was killed here has no plan, and is divided again
        tree: dict[str, Any] = {
            "rows": plan.rows,
            "size": size,
            "items_hash": found,
            "fingerprint": fingerprint,
        }
        if starts is not None:
            tree["starts"] = starts
        write_json(folder / "plan.json", tree)
        return plan

    @classmethod
    def open(cls, folder: Path) -> UnitPlan:
        """Open the plan in `folder`. Raises UserError if there is none."""
        if not cls.exists(folder):
            raise UserError(f"{folder} contains no plan of units", "start the run again")
        tree = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        starts = tree.pop("starts", None)
        return cls(folder, **tree, starts=None if starts is None else tuple(starts))

    @staticmethod
    def exists(folder: Path) -> bool:
        return (folder / "plan.json").exists()

    def packed(self) -> dict[str, bytes]:
        """Return the plan's files by name. Written to a folder of another machine, they are the same plan."""
        return {name: (self.folder / name).read_bytes() for name in ("items.arrow", "plan.json")}

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
        return parquet.batches(self.folder / "items.arrow")

    @cached_property
    def _suffix(self) -> str:
        division = [self.size] if self.starts is None else [self.size, self.starts]
        return fingerprint_of([self.fingerprint, self.items_hash, *division])[:16]

    def part(self, unit: int) -> Path:
        """Return the path of the unit's part."""
        return self.folder / f"unit-{unit:07d}-{self._suffix}.parquet"

    def finished(self) -> set[int]:
        """Return the units whose parts exist."""
        pattern = re.compile(rf"unit-(\d+)-{self._suffix}\.parquet")
        found = (pattern.fullmatch(entry.name) for entry in self.folder.iterdir())
        return {int(match[1]) for match in found if match}

    def run(self, unit: int, work: Work, watch: Watch) -> None:
        """Process one unit in this process, and write its part."""
        part = work.run(self.items(unit), watch)
        watch.end()
        with atomic(self.part(unit)) as temporary:
            parquet.write(temporary, part, compression="zstd", compression_level=1)


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


class Runner(Protocol):
    """Distributes units over processes."""

    def run(self, plan: UnitPlan, work: Work, pending: Sequence[int]) -> Iterator[int]:
        """Process the pending units in any order; yield the number of each when its part is written."""
        ...


def run_units(
    plan: UnitPlan,
    work: Work,
    runner: Runner,
    advance: Advance,
    note: Callable[[int], str] | None = None,
) -> None:
    """Process every unit of the plan that is not finished.

    `advance` is called with numbers of items, first those of finished units; `note(unit)` returns the text
    after the progress bar. Raises UserError with the unit's number if `Work.open` or `Work.run` raises.
    """
    finished = plan.finished()
    if finished:
        advance(sum(map(plan.rows_in, finished)), f"{len(finished)} units were finished before")
    pending = [unit for unit in range(plan.count) if unit not in finished]
    if not pending:
        return
    with contextlib.closing(_closable(runner.run(plan, work, pending))) as done:
        for unit in done:
            advance(plan.rows_in(unit), note(unit) if note else None)


def _closable(units: Iterator[int]) -> Generator[int, None, None]:
    """A generator around any iterator, so that leaving early closes the runner's own generator."""
    yield from units


def table_hash(table: pa.Table) -> str:
    """SHA-256 (64 hex digits) of a table's schema and rows, independent of its chunks."""
    sink = _HashSink()
    step = 65536
    with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), table.schema) as writer:
        for start in range(0, table.num_rows, step):
            writer.write_batch(_one_batch(table.slice(start, step)))
    return sink.hash.hexdigest()


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    """Copy a non-empty table into one record batch with offset zero, so that equal rows give equal bytes."""
    return pa.concat_batches(table.combine_chunks().to_batches())


class _HashSink:
    """A file that only hashes what is written to it."""

    closed = False

    def __init__(self) -> None:
        self.hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing: there is no buffer."""

    def close(self) -> None:
        """Do nothing: no file is open."""
