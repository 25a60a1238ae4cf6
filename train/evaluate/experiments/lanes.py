"""Several arms at the same time: a process for each device that is named, each with its commands in order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from uhr.base.console import command, counted, say, shown
from uhr.base.errors import UserError
from uhr.base.formatting import duration
from uhr.runtime.gpus import visible_gpus
from uhr.runtime.worker import search_path
from uhr.train.evaluate.experiments.commands import ArmRun, Step

OUTPUT = "output.txt"
"""What the commands of an arm have printed, in its folder."""

_POLL = 0.1
_GPU = re.compile(r"cuda:(\d+)")


@dataclass(frozen=True)
class Lane:
    """A place for one process.

    name: as the user names the device. device: what its commands are given. environment: of its processes;
    one of cuda:1 sees that GPU alone, as cuda, so that a command can be resumed on another one.
    """

    name: str
    device: str
    environment: Mapping[str, str] = field(default_factory=dict)


def lanes_of(text: str) -> list[Lane]:
    """Read `cuda:0,cuda:1`: a lane for each device; one that is named twice has two processes.

    A single device is taken as it is. Raises UserError for one of several that this machine does not have,
    or whose name does not say which it is.
    """
    names = [name.strip() for name in text.split(",")]
    if len(names) == 1:
        return [Lane(text, text)]
    found = []
    for name in names:
        match = _GPU.fullmatch(name)
        if match is None and name != "cpu":
            raise UserError(f"--device {text}: '{name}'", "name cpu, or single GPUs: cuda:0,cuda:1")
        if match is None:
            found.append(Lane(name, name))
            continue
        gpus = visible_gpus()
        if int(match[1]) >= len(gpus):
            raise UserError(f"--device {text}: there are {counted(len(gpus), 'GPU')} here", "name those")
        found.append(Lane(name, "cuda", {"CUDA_VISIBLE_DEVICES": gpus[int(match[1])]}))
    return found


def shared(lanes: Sequence[Lane]) -> list[str]:
    """The devices that several processes share."""
    names = [lane.name for lane in lanes]
    return sorted({name for name in names if names.count(name) > 1})


StepsOf = Callable[[ArmRun, str], Sequence[Step]]
"""The steps of an arm with one training seed on a device."""


def run_in_lanes(runs: Sequence[ArmRun], steps_of: StepsOf, lanes: Sequence[Lane], quiet: bool) -> None:
    """Run what is left of the arms, each in the first lane that is free.

    quiet: print on standard error. Once a command has failed no other is started, and those that run are
    waited for. Raises UserError with the last line of the first that failed. Ctrl-C, and an error that is not
    a command's, interrupt all of them.
    """
    waiting = deque(run for run in runs if not all(step.is_done() for step in steps_of(run, "auto")))
    busy: dict[int, _Arm] = {}
    failed: list[UserError] = []
    printer = _to_stderr if quiet else say
    try:
        while busy or (waiting and not failed):
            for number, lane in enumerate(lanes):
                if number not in busy and waiting and not failed:
                    run = waiting.popleft()
                    busy[number] = _Arm(run, steps_of(run, lane.device), lane, printer)
                if number in busy and busy[number].advance(failed):
                    del busy[number]
            time.sleep(_POLL)
    except BaseException as error:
        # the processes are in sessions of their own: nothing else would end them
        for arm in busy.values():
            arm.interrupt()
        for arm in busy.values():
            arm.wait()
        if isinstance(error, KeyboardInterrupt):
            printer("the same `uhr eval experiment` resumes")
        raise
    if failed:
        raise failed[0]


class _Arm:
    """One arm with one training seed in a lane: at most one process at a time."""

    def __init__(
        self, run: ArmRun, steps: Sequence[Step], lane: Lane, printer: Callable[[str], None]
    ) -> None:
        self._file, self._lane, self._print = run.out / OUTPUT, lane, printer
        seed = "" if run.seed is None else f", seed {run.seed}"
        self._name = f"{run.name}{seed} on {lane.name}"
        self._steps: Iterator[Step] = iter(steps)
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0.0

    def advance(self, failed: list[UserError]) -> bool:
        """Look after the process, and start the next one. Returns whether there is nothing left to do; an
        error is added to `failed`, after which nothing is started.
        """
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return False
            self._process = None
            if code != 0:
                fix = f"see {shown(self._file)}; the same command resumes"
                failed.append(UserError(f"{self._name}: {self._last_line() or f'exit code {code}'}", fix))
                return True
            self._print(f"  {self._name}: done in {duration(time.monotonic() - self._began)}")
        if failed:
            return True
        step = next((step for step in self._steps if not step.is_done()), None)
        if step is None:
            return True
        self._start(step)
        return False

    def _start(self, step: Step) -> None:
        line = f"$ {command(*step.command)}"
        self._print(f"{self._name}\n{line}")
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._began = time.monotonic()
        with self._file.open("ab") as file:
            file.write(f"{line}\n".encode(errors="backslashreplace"))
            file.flush()
            self._process = subprocess.Popen(
                # -P: the working folder must not shadow the standard library
                [sys.executable, "-P", "-m", "uhr", *step.command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(search_path()), **self._lane.environment},
                # Ctrl-C is for this process, which hands it on once
                start_new_session=True,
            )

    def _last_line(self) -> str:
        size = self._file.stat().st_size
        with self._file.open("rb") as file:
            file.seek(max(0, size - 4000))
            lines = file.read().decode(errors="replace").strip().splitlines()
        return "" if not lines or lines[-1].startswith("$ ") else lines[-1].removeprefix("uhr: ")

    def interrupt(self) -> None:
        """Interrupt the process: a training saves a checkpoint before it ends."""
        if self._process is not None:
            # as by Ctrl-C, which the processes of a background job ignore
            self._process.terminate()

    def wait(self) -> None:
        """Wait for the end of the process."""
        if self._process is not None:
            self._process.wait()


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
