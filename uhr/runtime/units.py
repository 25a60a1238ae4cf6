"""Units of work: a plan cut once, one atomic part per unit, and a resume that repeats nothing.

A run over many items (images to curate, rows to encode) is cut into units by the order of the items, never
by an engine's blocks. The cut is written down before anything runs. Each unit becomes one part, whole or
absent, under a name made of the unit's number and the plan's fingerprint: a rerun skips it, a retry writes
the same bytes, nothing is counted twice. How units are spread over processes is a runner's business
(`uhr.runtime.pool`).
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
from typing import NamedTuple, Protocol

import pyarrow as pa

from uhr.base import parquet
from uhr.base.config import fingerprint as fingerprint_of
from uhr.base.console import Advance
from uhr.base.errors import UserError
from uhr.base.files import atomic, write_json

TIME_LIMIT, MEMORY_LIMIT, CRASH = "time limit", "memory limit", "crash"
"""The kinds of `UnitFault`: why an item is not touched again."""

FILES = r"plan\.json|items\.arrow|unit-\d+-[0-9a-f]{16}\.parquet"
"""The names that a plan and its parts have in their folder, as a regular expression."""


@dataclass(frozen=True)
class Limits:
    """What one item, and the process that works on it, may cost."""

    seconds: float = 60.0
    """Wall time per item; time that the machine slept does not count."""
    memory: int = 4 * 2**30
    """Resident bytes per worker process."""


NO_LIMITS = Limits(math.inf, 2**62)
"""For work whose items may take as long and as much as they need: an image that is painted, say."""


class UnitFault(NamedTuple):
    """What an item did to the process that worked on it.

    `kind` is one of `TIME_LIMIT`, `MEMORY_LIMIT`, `CRASH`; `message` is for people; `step` is the step of
    `Watch.begin` that it happened in.
    """

    kind: str
    message: str
    step: int = 0


class Watch:
    """How a `Work` tells which item it is about to touch, so that the item which kills a worker can be
    named.
    """

    def __init__(self, faults: dict[int, UnitFault] | None = None) -> None:
        self._faults = faults or {}

    def begin(self, index: int, step: int = 0) -> UnitFault | None:
        """Called before item `index` of the unit enters `step`; steps of one item rise.

        A fault: this item ended an earlier try in this step (or an earlier one), so it must not be touched
        again.
        """
        self._tell(index, step)
        fault = self._faults.get(index)
        return fault if fault is not None and step >= fault.step else None

    def end(self) -> None:
        """Called when no item is being touched: what goes wrong from here on is the work's own fault."""
        self._tell(-1, 0)

    def _tell(self, index: int, step: int) -> None:
        """Where a process is watched from outside, its watch writes this down."""


class Work(ABC):
    """What is done to a unit. Picklable; one instance lives in each worker process.

    `run` must give the same table for the same items, whatever ran before and wherever it runs. Rows' own
    faults are its business: an exception that leaves `run` stops the whole run.
    """

    def open(self) -> None:  # noqa: B027 - most kinds of work have nothing to open
        """Called once per process before the first unit: load weights, compile kernels."""

    @abstractmethod
    def run(self, items: pa.Table, watch: Watch) -> pa.Table:
        """The part of one unit, of the same schema for every unit."""


class PlanMismatch(UserError):
    """A plan of other items or other work already stands in the folder; `changed` says which: "inputs" or
    "work".
    """

    def __init__(self, what: str, fix: str | None, changed: str = "inputs") -> None:
        super().__init__(what, fix)
        self.changed = changed


@dataclass(frozen=True)
class UnitPlan:
    """The cut of a run: `rows` items in units of `size`, in `folder` as plan.json beside items.arrow."""

    folder: Path
    rows: int
    size: int
    items_hash: str
    fingerprint: str
    """Of the work (code, parameters); the items have their own hash."""

    @classmethod
    def create(cls, folder: Path, items: pa.Table, size: int, fingerprint: str) -> UnitPlan:
        """The plan for these items; one that stands there already for the same items and work is taken as it
        is.

        Raises PlanMismatch where the folder holds a plan of something else.
        """
        assert size > 0
        found = table_hash(items)
        if cls.exists(folder):
            plan = cls.open(folder)
            fix = "name another folder, or remove this one"
            if plan.items_hash != found:
                raise PlanMismatch(f"{folder} holds a run over other inputs", fix, "inputs")
            if plan.fingerprint != fingerprint:
                raise PlanMismatch(f"{folder} holds a run of other work", fix, "work")
            return plan
        plan = cls(folder, items.num_rows, size, found, fingerprint)
        with (
            atomic(folder / "items.arrow") as temporary,
            open(temporary, "wb") as file,
            pa.ipc.new_file(file, items.schema) as writer,
        ):
            for start in range(0, items.num_rows, size):
                writer.write_batch(_one_batch(items.slice(start, size)))
        # plan.json last: a run that was killed here finds no plan and cuts again
        tree = {"rows": plan.rows, "size": size, "items_hash": found, "fingerprint": fingerprint}
        write_json(folder / "plan.json", tree)
        return plan

    @classmethod
    def open(cls, folder: Path) -> UnitPlan:
        """The plan that stands in `folder`."""
        if not cls.exists(folder):
            raise UserError(f"{folder} holds no plan of units", "start the run again")
        tree = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        return cls(folder, **tree)

    @staticmethod
    def exists(folder: Path) -> bool:
        return (folder / "plan.json").exists()

    def packed(self) -> dict[str, bytes]:
        """The plan's files by name: written into another folder, on another machine, they are this plan."""
        return {name: (self.folder / name).read_bytes() for name in ("items.arrow", "plan.json")}

    @property
    def count(self) -> int:
        """Number of units."""
        return -(-self.rows // self.size)

    def rows_in(self, unit: int) -> int:
        """Number of items in a unit: `size`, fewer in the last."""
        return min(self.size, self.rows - unit * self.size)

    def items(self, unit: int) -> pa.Table:
        """The items of a unit, without reading the others."""
        return pa.Table.from_batches([self._reader.get_batch(unit)])

    @cached_property
    def _reader(self) -> pa.ipc.RecordBatchFileReader:
        return parquet.batches(self.folder / "items.arrow")

    @cached_property
    def _suffix(self) -> str:
        return fingerprint_of([self.fingerprint, self.items_hash, self.size])[:16]

    def part(self, unit: int) -> Path:
        """Where the unit's part stands once it is finished."""
        return self.folder / f"unit-{unit:07d}-{self._suffix}.parquet"

    def finished(self) -> set[int]:
        """The units whose parts stand."""
        pattern = re.compile(rf"unit-(\d+)-{self._suffix}\.parquet")
        found = (pattern.fullmatch(entry.name) for entry in self.folder.iterdir())
        return {int(match[1]) for match in found if match}

    def run(self, unit: int, work: Work, watch: Watch) -> None:
        """Do one unit here, in this process, and write its part."""
        part = work.run(self.items(unit), watch)
        watch.end()
        with atomic(self.part(unit)) as temporary:
            parquet.write(temporary, part, compression="zstd", compression_level=1)


class Runner(Protocol):
    """Spreads units over processes."""

    def run(self, plan: UnitPlan, work: Work, pending: Sequence[int]) -> Iterator[int]:
        """Do the pending units in any order; yields each one's number when its part stands."""
        ...


def run_units(
    plan: UnitPlan,
    work: Work,
    runner: Runner,
    advance: Advance,
    note: Callable[[int], str] | None = None,
) -> None:
    """Do every unit of the plan that is not finished.

    `advance` hears of items, those of finished units first; `note(unit)` gives the words behind the progress
    bar. Errors: what `Work.open` or `Work.run` raised, as a UserError that names the unit.
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
    """SHA-256 (64 hex digits) of a table's schema and rows, whatever chunks it is in."""
    sink = _HashSink()
    step = 65536
    with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), table.schema) as writer:
        for start in range(0, table.num_rows, step):
            writer.write_batch(_one_batch(table.slice(start, step)))
    return sink.hash.hexdigest()


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    """A non-empty table as one record batch in buffers of its own (offset zero, so equal rows give equal
    bytes).
    """
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
        """Nothing waits anywhere."""

    def close(self) -> None:
        """Nothing is open."""
