"""Starts the processes of a run: in this process, as local processes, under `torchrun`, or on Ray.

Whatever starts them, each process runs `take_part`, which connects it to the others and trains. Rank 0 reads
and writes the run's folder, and all processes of all machines see that folder under one path.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from uhr.base.console import command, say, warn
from uhr.base.errors import UserError, unknown
from uhr.models.zoo import pick_device
from uhr.runtime.process import how_it_ended
from uhr.runtime.threads import threads_each
from uhr.runtime.worker import search_path
from uhr.train.recipes.core.base import RecipeBase
from uhr.train.run.checkpoints import checkpoint
from uhr.train.run.checkpoints.checkpoint import CheckpointInfo
from uhr.train.run.job import Job, joined_job, lock_run
from uhr.train.run.processes import parallel
from uhr.train.run.processes.mesh import Accumulation
from uhr.train.run.processes.parallel import EveryRank, Ranks, device_of
from uhr.train.run.trainer import TrainingResult, train

Launcher = Literal["local", "torchrun", "ray"]

GRACE_SECONDS = 20.0
"""How long the other processes may take to end after one has failed."""


@dataclass(frozen=True)
class Launch:
    """How the processes of a run are started.

    workers: their number. address: a running Ray cluster; None is Ray on this machine.
    """

    launcher: Launcher = "local"
    workers: int = 1
    address: str | None = None

    @classmethod
    def of(cls, launcher: str | None, workers: int | None, address: str | None) -> Launch:
        """The launch of a command's options. Without `launcher` it is `torchrun` in a process that torchrun
        started, and otherwise `local`.

        Raises UserError for an unknown launcher, and for options that do not belong to it.
        """
        chosen = launcher or ("torchrun" if parallel.started() else "local")
        if address is not None and chosen != "ray":
            raise UserError("--address names a Ray cluster", "add --launcher ray")
        if chosen == "torchrun":
            if not parallel.started():
                again = "begin the command with `torchrun -m`"
                raise UserError("--launcher torchrun is for a process that torchrun started", again)
            world = parallel.from_environment().world
            if workers not in (None, world):
                raise UserError(f"torchrun started {world} processes, not {workers}", "leave out --workers")
            return cls("torchrun", world)
        if chosen == "local":
            return cls("local", workers or 1)
        if chosen == "ray":
            return cls("ray", workers or 1, address)
        raise unknown("launcher", chosen, get_args(Launcher), "--launcher")

    def check(self, recipe: RecipeBase) -> None:
        """Raise UserError if these processes cannot share the recipe's batch equally; rank 0 alone prints
        it."""
        try:
            Accumulation.of(recipe.batch, self.workers)
        except UserError:
            if self.launcher == "torchrun" and not parallel.from_environment().first:
                raise SystemExit(1) from None
            raise

    def train(
        self, out: Path, device: str, begin: Callable[[], Job]
    ) -> tuple[Job, TrainingResult | None] | None:
        """Start or reopen a run, and train it.

        begin: starts or reopens the job, whose recipe `check` has accepted. device: that of the recipe.
        Returns the job, and the result if a step was left; None in a process that has nothing to report.
        Raises UserError if one of the processes fails.
        """
        if self.launcher == "torchrun":
            ranks = parallel.from_environment()
            with contextlib.ExitStack() as held, reporting(ranks):
                found = take_part(lambda: _locked(held, out, begin), out, device, ranks)
                if not ranks.first and found[1] is not None and found[1].stopped:
                    raise SystemExit(130)
            return found if ranks.first else None
        with lock_run(out):
            job = begin()
            if job.done >= job.recipe.steps:
                return job, None
            if self.launcher == "ray":
                from uhr.train.run.on_ray import train_on_ray

                _say_batch(job, self.workers)
                return job, train_on_ray(job, self.workers, self.address)
            if self.workers == 1:
                _say_batch(job, 1)
                return job, train(job)
        # the lock is now rank 0's
        start_local(out, self.workers, job.recipe.runtime.restarts)
        return None


def _locked(held: contextlib.ExitStack, out: Path, begin: Callable[[], Job]) -> Job:
    held.enter_context(lock_run(out))
    return begin()


@contextlib.contextmanager
def reporting(ranks: Ranks) -> Generator[None]:
    """Let rank 0 alone print, and name the process in an error that only one of them has."""
    with contextlib.ExitStack() as quiet:
        if not ranks.first:
            nothing = quiet.enter_context(open(os.devnull, "w", encoding="utf-8"))
            quiet.enter_context(contextlib.redirect_stdout(nothing))
        try:
            yield
        except EveryRank:
            if ranks.first:
                raise
            raise SystemExit(1) from None
        except UserError as error:
            if ranks.world > 1:
                error.what = f"process {ranks.rank} of {ranks.world}: {error.what}"
            raise


def take_part(
    job_of: Callable[[], Job],
    out: Path,
    device: str,
    ranks: Ranks,
) -> tuple[Job, TrainingResult | None]:
    """Be one process of a run: connect to the others, and train. Every process of the run calls it.

    job_of: starts or reopens the job; only rank 0 calls it. device: that of the recipe.
    Returns the job, and the result if a step was left.
    """
    with parallel.joined(ranks, device_of(pick_device(device), ranks)):
        found: list[Job] = []

        def first() -> tuple[Path, CheckpointInfo] | None:
            found.append(job_of())
            return found[0].resume

        resume = ranks.from_first(first)
        with ranks.together():
            job = found[0] if ranks.first else joined_job(out, resume)
        if job.done >= job.recipe.steps:
            return job, None
        _say_batch(job, ranks.world)
        return job, train(job, ranks)


def _say_batch(job: Job, workers: int) -> None:
    """Print how the processes share a batch; all but the first have no output."""
    say(Accumulation.of(job.recipe.batch, workers).describe())


def start_local(out: Path, workers: int, restarts: int) -> None:
    """Run `workers` processes that resume the run, and wait for them. If one of them is killed, all of them
    are started again, at most `restarts` times; what fails with an error of its own would fail again.

    Ctrl-C and SIGTERM are passed on to all of them. Raises UserError if one of them fails, after the others
    have ended too, and KeyboardInterrupt if a signal stopped them.
    """
    for number in range(1, restarts + 2):
        failed = _run_local(out, workers)
        if failed is None:
            return
        rank, code = failed
        ended = f"process {rank} of {workers} {how_it_ended(code)}"
        if code >= 0 or number > restarts:
            raise UserError(
                f"{ended}, and the others were stopped",
                f"its error is above; `{command('train', 'resume', out)}` continues at the last checkpoint",
            )
        warn(checkpoint.restarting(out, ended, number, restarts))


def _run_local(out: Path, workers: int) -> tuple[int, int] | None:
    """Run the processes once: None if all did their work, or the number and exit code of the one that failed.

    Raises KeyboardInterrupt if a signal stopped them.
    """
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(workers),
        "LOCAL_WORLD_SIZE": str(workers),
        "OMP_NUM_THREADS": str(threads_each(workers)),
        "PYTHONPATH": os.pathsep.join(search_path()),
    }
    processes: list[subprocess.Popen] = []
    with _signals_to(processes) as signalled:
        try:
            for rank in range(workers):
                processes.append(_start(out, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}))
            failed = _wait(processes)
        finally:
            _end(processes)
    if failed is not None and signalled:
        raise KeyboardInterrupt
    return failed


def _start(out: Path, environment: Mapping[str, str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "uhr", "train", "resume", str(out.absolute())],
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
        # a terminal's Ctrl-C goes to this process alone, which passes it on once
        start_new_session=True,
    )


def _wait(processes: list[subprocess.Popen]) -> tuple[int, int] | None:
    """Wait until all have ended, or one has failed: its number and exit code."""
    while True:
        codes = [process.poll() for process in processes]
        failed = [(rank, code) for rank, code in enumerate(codes) if code not in (None, 0)]
        if failed:
            # a process that lost another one exits with 1: what was killed, or failed first, is the cause
            return min(failed, key=lambda each: (each[1] >= 0, each[0]))
        if None not in codes:
            return None
        time.sleep(0.05)


def _end(processes: list[subprocess.Popen]) -> None:
    """Let the processes end by themselves, which they do when one is lost, and kill them after a while."""
    deadline = time.monotonic() + GRACE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _signals_to(processes: list[subprocess.Popen]) -> Generator[list[int]]:
    """Pass SIGINT and SIGTERM on to processes in the block; yields those that came."""
    received: list[int] = []

    def handle(number: int, _: object) -> None:
        received.append(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    kept = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
