"""Check every machine of a Ray cluster before any work: one that lacks something ends the run in one line.
One that joins later is checked before it gets work.

Without it a run would fail image by image, or hours later, on the machine that has another version, no
weights or no credentials. A machine is only checked for the segments that it can run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uhr
from uhr.base.config import installed_versions
from uhr.base.console import note
from uhr.base.errors import UserError, one_line
from uhr.base.formatting import human_bytes
from uhr.base.store import ObjectStore
from uhr.runtime.units import Segment, TaskWork, UnitPlan

NOTE_SECONDS = 60.0
"""Seconds after which a line says that machines have not answered yet."""

FREE_SECONDS = 20.0
"""Longest time until the CPUs of an earlier pass are free again."""

FREE_BYTES = 2**30
"""The least free disk of a machine's folder for temporary files, and of the run's folder."""

LIBRARIES = ("numpy", "pyarrow", "opencv-python-headless", "pillow", "numba")
"""Packages that decide values of every kind of work."""


@dataclass(frozen=True)
class Task:
    """The work of a segment, pickled, and what this machine knows of it (`TaskWork.facts`)."""

    work: bytes
    facts: Any
    cpus: float
    gpus: float
    accelerator: str | None

    def fits(self, has: Mapping[str, float]) -> bool:
        """Whether a machine with these resources can run it."""
        kind = self.accelerator is None or f"accelerator_type:{self.accelerator}" in has
        return has.get("CPU", 0) >= self.cpus and has.get("GPU", 0) >= self.gpus and kind


@dataclass(frozen=True)
class Expected:
    """What every machine must have as this one has it."""

    versions: Mapping[str, str]
    code: str
    plan: tuple[str, str, bytes] | None
    """Folder, name and content of the plan's file; None if the plan is sent to the machines."""
    store: str | None
    """Where the machines put their parts, if it is not a folder."""
    path: Sequence[str]
    folder: str


Fault = tuple[str, str | None]
"""What a machine lacks, and the fix."""


class Preflight:
    """What the machines of the connected cluster are checked for, and which of them can work.

    shared_gpus: of the workers of a segment without workers of its own. path: module search path. `faults`
    has the machines, by the ids of their nodes, that cannot work.
    """

    def __init__(
        self,
        plan: UnitPlan,
        segments: Sequence[Segment],
        shared_gpus: int,
        path: Sequence[str],
        carry: bool,
    ) -> None:
        self._tasks = [
            Task(
                pickle.dumps(s.work),
                s.work.facts(plan),
                s.cpus,
                (shared_gpus if s.workers is None else s.gpus) or 0,
                s.accelerator,
            )
            for s in segments
        ]
        libraries = sorted({*LIBRARIES, *(name for s in segments for name in s.work.libraries())})
        file = None if carry else plan.mark()
        store = None if plan.mirror is None else plan.mirror.address
        self._expected = Expected(versions(libraries), code_hash(), file, store, path, os.getcwd())
        self._seconds = max((s.work.check_seconds for s in segments), default=0.0)
        self.passed: set[str] = set()
        self.faults: dict[str, UserError] = {}

    def check_all(self) -> None:
        """Check every machine that can run one of the segments.

        Raises UserError for the first machine, by name, that cannot do the work.
        """
        import ray

        answers = {self.ask(node["NodeID"]): node for node in ray.nodes() if self._own(node)}
        done, silent = _wait({ref: _name(node) for ref, node in answers.items()}, self._seconds)
        faults: dict[str, UserError] = {}
        for ref in silent:
            what = f"machine {_name(answers[ref])}: has not answered for {self._seconds:g} s"
            faults[_name(answers[ref])] = UserError(what, "look at it, or remove it")
        for ref in done:
            fault = self.answer(answers[ref]["NodeID"], ref)
            if fault is not None:
                faults[_name(answers[ref])] = fault
        if faults:
            first = faults[min(faults)]
            others = f" (and {len(faults) - 1} more of {len(answers)} machines cannot work)"
            raise UserError(first.what + (others if len(faults) > 1 else ""), first.fix)

    def ask(self, node_id: str) -> Any:
        """Begin to check a machine; the result is for `answer`."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node = next((node for node in ray.nodes() if node["NodeID"] == node_id), None)
        strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
        check = ray.remote(_fault).options(num_cpus=0, max_retries=2, scheduling_strategy=strategy)
        return check.remote([] if node is None else self._own(node), self._expected)

    def answer(self, node_id: str, ref: Any) -> UserError | None:
        """Return the fault of a machine that was checked; None if it can work."""
        import ray
        from ray.exceptions import RayError

        try:
            fault: Fault | None = ray.get(ref)
        except RayError as error:
            why = one_line(error.__cause__ or error)[-200:]
            fault = f"cannot run uhr ({why})", "install the same version of uhr there"
        if fault is None:
            self.passed.add(node_id)
            return None
        names = [_name(node) for node in ray.nodes() if node["NodeID"] == node_id]
        self.faults[node_id] = UserError(f"machine {names[0] if names else node_id}: {fault[0]}", fault[1])
        return self.faults[node_id]

    def _own(self, node: Mapping[str, Any]) -> list[Task]:
        """Return the work that a machine can do."""
        return [task for task in self._tasks if task.fits(node["Resources"])] if node["Alive"] else []


def _wait(names: Mapping[Any, str], seconds: float) -> tuple[list[Any], list[Any]]:
    """Return the answers that are there after at most so many seconds, and those that are not; say now and
    then on which machines the run waits.
    """
    import ray

    end = time.monotonic() + seconds
    while True:
        left = max(0.0, end - time.monotonic())
        done, silent = ray.wait([*names], num_returns=len(names), timeout=min(left, NOTE_SECONDS))
        if not silent or left <= NOTE_SECONDS:
            return done, silent
        shown = sorted(names[ref] for ref in silent)
        rest = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
        note(f"not checked yet: {', '.join(shown[:3])}{rest}; they may be fetching or hashing weights")


def check_free(cpus: float, gpus: float) -> None:
    """Raise UserError unless so many CPUs and GPUs of the connected cluster are free."""
    import ray

    end = time.monotonic() + FREE_SECONDS
    while True:
        free = ray.available_resources()
        has, has_gpus = free.get("CPU", 0), free.get("GPU", 0)
        if has >= cpus and has_gpus >= gpus:
            return
        if time.monotonic() > end:
            needs = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
            left = f"{has:g}" + (f" and {has_gpus:g}" if gpus else "")
            what = f"the run needs {needs}, and other jobs of the Ray cluster have left {left}"
            raise UserError(what, "fewer --workers or actors, or wait for the other jobs")
        time.sleep(0.2)


def versions(libraries: Sequence[str]) -> dict[str, str]:
    """Return the versions of Python, uhr and these packages on this machine."""
    own = {"python": ".".join(platform.python_version_tuple()[:2]), "uhr": uhr.__version__}
    return {**own, **installed_versions(*libraries)}


def code_hash() -> str:
    """Return the SHA-256 (64 hex digits) of uhr's own code on this machine."""
    total = hashlib.sha256()
    root = Path(uhr.__file__).parent
    files = []
    for folder, _, names in os.walk(root, followlinks=True):
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    for file in sorted(files, key=lambda each: each.relative_to(root).as_posix()):
        total.update(f"{file.relative_to(root).as_posix()}\n".encode())
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def _name(node: Mapping[str, Any]) -> str:
    name, host = str(node.get("NodeName") or ""), str(node["NodeManagerHostname"])
    return host if name in ("", str(node["NodeManagerAddress"])) else name


def _fault(tasks: Sequence[Task], expected: Expected) -> Fault | None:
    """Say what this machine lacks, and the fix; None if nothing. Runs on each machine."""
    sys.path.extend(folder for folder in expected.path if folder not in sys.path)
    try:
        _check_versions(expected)
        if expected.plan is not None:
            _check_plan(*expected.plan)
        if expected.store is not None:
            ObjectStore(expected.store).probe()
        _check_disk(Path(tempfile.gettempdir()), "temporary files (TMPDIR)")
        with _inside(expected.folder):
            for task in tasks:
                work: TaskWork = pickle.loads(task.work)
                work.check(task.facts)
    except UserError as error:
        # as data: an exception in a task would be shown with Ray's own traceback
        return error.what, error.fix
    except ImportError as error:
        return f"a module is missing ({one_line(error)})", "install the same packages there"
    return None


def _check_versions(expected: Expected) -> None:
    mine = versions([name for name in expected.versions if name not in ("python", "uhr")])
    for name, wanted in expected.versions.items():
        if mine[name] != wanted:
            raise UserError(
                f"{name} is {mine[name]}, and {wanted} where the run was started",
                "install the same version there",
            )
    if code_hash() != expected.code:
        raise UserError(
            f"uhr {uhr.__version__} has other code than where the run was started",
            "install the same version there",
        )


def _check_plan(folder: str, name: str, content: bytes) -> None:
    """Check that this machine sees the run's folder, and may write to it."""
    place = Path(folder)
    try:
        same = (place / name).read_bytes() == content
    except OSError:
        same = False
    if not same:
        raise UserError(f"{folder} is not the folder that the run writes", "mount it there at the same path")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror})", "allow it there") from None
    _check_disk(place, "the run")


def _check_disk(folder: Path, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < FREE_BYTES:
        needs = human_bytes(FREE_BYTES)
        raise UserError(
            f"{folder}, for {what}, has {human_bytes(free)} free, less than {needs}", "free space there"
        )


@contextlib.contextmanager
def _inside(folder: str) -> Generator[None]:
    """Relative paths of the work start from the run's working folder, if this machine has it."""
    before = os.getcwd()
    if os.path.isdir(folder):
        os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
