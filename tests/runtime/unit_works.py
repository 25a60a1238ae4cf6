"""Works for the tests of units: a module that worker processes import from outside the packages."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pyarrow as pa

from uhr.runtime.units import TaskWork, Watch, Work

EAT_BYTES = 1 << 30


class Square(Work):
    """x -> x * x, after `seconds` per item."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def run(self, items: pa.Table, watch: Watch) -> pa.Table:
        squares = []
        for index, x in enumerate(items["x"].to_pylist()):
            assert watch.begin(index) is None
            time.sleep(self.seconds)
            squares.append(x * x)
        return pa.table({"x": items["x"], "y": squares})


class Hazard(Work):
    """Does to its process what the item says, in step 1; step 0 is harmless."""

    def run(self, items: pa.Table, watch: Watch) -> pa.Table:
        said = []
        for index, what in enumerate(items["what"].to_pylist()):
            assert watch.begin(index, 0) is None
            fault = watch.begin(index, 1)
            if fault is None:
                _do(what)
            said.append("fine" if fault is None else f"{fault.kind}: {fault.message}")
        return pa.table({"what": items["what"], "said": said})


def _do(what: str) -> None:
    if what == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif what == "exit":
        os._exit(7)
    elif what == "hang":
        time.sleep(3600)
    elif what == "spin":
        while True:
            pass
    elif what == "eat":
        held = [b"x" * EAT_BYTES]
        time.sleep(3600 * len(held))


class KilledOnce(Work):
    """Dies by SIGKILL in the middle of an item, but only the first time: as if an operator had done it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def run(self, items: pa.Table, watch: Watch) -> pa.Table:
        for index in range(items.num_rows):
            assert watch.begin(index) is None
            if index == 1 and not self.marker.exists():
                self.marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return items


class DiesInOpen(Work):
    def open(self) -> None:
        print("weights.bin: bad magic number", file=sys.stderr, flush=True)
        os._exit(3)

    def run(self, items: pa.Table, watch: Watch) -> pa.Table:
        return items


class RaisesInOpen(Work):
    def open(self) -> None:
        raise RuntimeError("no weights here")

    def run(self, items: pa.Table, watch: Watch) -> pa.Table:
        return items


class RaisesOnFive(Work):
    def run(self, items: pa.Table, watch: Watch) -> pa.Table:
        for x in items["x"].to_pylist():
            if x == 5:
                raise ValueError("five\nis not allowed")
        return items


class Surroundings(Work):
    """What the process looks like from inside."""

    def open(self) -> None:
        import cv2

        self.cv2 = cv2

    def run(self, items: pa.Table, watch: Watch) -> pa.Table:
        threads = [self.cv2.getNumThreads(), pa.cpu_count(), int(os.environ["OMP_NUM_THREADS"])]
        wait = os.environ["OMP_WAIT_POLICY"]
        return pa.table({"threads": threads, "pid": [os.getpid()] * 3, "wait": [wait] * 3})


class WhereIt(Work):
    """The folder that relative paths start from."""

    def run(self, items: pa.Table, watch: Watch) -> pa.Table:
        return pa.table({"folder": [os.getcwd()] * items.num_rows})


class CountsThreads(Work):
    """How many threads the libraries of the process take, and how those wait, written to a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, items: pa.Table, watch: Watch) -> pa.Table:
        import torch

        found = {
            "folder": os.getcwd(),
            "torch": torch.get_num_threads(),
            "arrow": pa.cpu_count(),
            "omp": os.environ["OMP_NUM_THREADS"],
            "mkl": os.environ["MKL_NUM_THREADS"],
            "wait": os.environ["OMP_WAIT_POLICY"],
        }
        (self.folder / "threads.json").write_text(json.dumps(found))
        return items


class SeesGpus(Work):
    """Which GPUs the process may use, written to a folder: where parts stay with the worker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, items: pa.Table, watch: Watch) -> pa.Table:
        for x in items["x"].to_pylist():
            (self.folder / str(x)).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
        time.sleep(0.3)  # long enough for the others to get a unit too
        return items


class Doubles(TaskWork):
    """First segment: x -> 2 x, passed on in memory; a part that is there already is not written again."""

    def do(self, plan, unit, watch, given):
        assert given is None
        doubled = [2 * x for x in plan.items(unit)["x"].to_pylist()]
        if not plan.part(unit).exists():
            plan.write(unit, pa.table({"doubled": doubled}))
        return json.dumps(doubled).encode()


class AddsOne(TaskWork):
    """A later segment: adds 1 to what it is given, row by row where a batch dies. Dies at `fatal`."""

    def __init__(self, segment: int, fatal: int = -1) -> None:
        self.segment, self.fatal = segment, fatal

    def do(self, plan, unit, watch, given):
        numbers = json.loads(given)
        if watch.batch(len(numbers), 1):
            added = [self._one(x) for x in numbers]
        else:
            faults = [watch.begin(index, 1) or self._one(x) for index, x in enumerate(numbers)]
            added = [x if isinstance(x, int) else -1 for x in faults]
        watch.end()
        plan.write(unit, pa.table({"added": added}), self.segment)

    def _one(self, x: int) -> int:
        if x == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return x + 1


class Reporting(Work):
    """Reports each item as done, and goes on when the file `go-N` is in `folder`."""

    reports = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, items: pa.Table, watch: Watch) -> pa.Table:
        for index in range(items.num_rows):
            watch.begin(index)
            watch.done(index + 1)
            if index + 1 < items.num_rows:
                while not (self.folder / f"go-{index + 1}").exists():
                    time.sleep(0.01)
        return items
