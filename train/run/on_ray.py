"""Runs the processes of a job on Ray. Ray Train starts them and connects them; the rest is as everywhere."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from uhr.base.console import progress, warn
from uhr.base.errors import UserError, one_line
from uhr.runtime.ray import check_installed, running_ray
from uhr.runtime.worker import search_path
from uhr.train.run.checkpoints import checkpoint
from uhr.train.run.checkpoints.checkpoint import CheckpointInfo
from uhr.train.run.job import RAY, Job, joined_job
from uhr.train.run.monitoring.log import progress_note, read_log
from uhr.train.run.processes import parallel
from uhr.train.run.processes.parallel import EveryRank, OthersLost
from uhr.train.run.stop import FILE as STOP
from uhr.train.run.stop import stop_requests
from uhr.train.run.trainer import TrainingResult, train

POLL_SECONDS = 0.5


def train_on_ray(job: Job, workers: int, address: str | None) -> TrainingResult:
    """Train with `workers` Ray workers, of one CPU each and of one GPU if the recipe's device is one.

    address: a running cluster; None starts Ray on this machine. All of its machines see the run's folder,
    model and data under the same paths. Ctrl-C stops after a step, as everywhere.
    Raises UserError if a worker fails, or if the cluster cannot run so many.
    """
    check_installed()
    with running_ray(address, workers) as (cpus, gpus):
        device = _device(job.recipe.runtime.device, workers, gpus)
        if workers > cpus:
            what = f"{workers} workers need as many CPUs, and the Ray cluster has {cpus}"
            raise UserError(what, give={"workers": str(max(1, cpus))})
        stop = job.out / STOP
        stop.unlink(missing_ok=True)
        try:
            _fit_with_restarts(job, workers, device)
        finally:
            stop.unlink(missing_ok=True)
            shutil.rmtree(job.out / RAY, ignore_errors=True)
    return _result(job)


def _fit_with_restarts(job: Job, workers: int, device: str) -> None:
    """Run the workers, and again from the newest checkpoint if one was killed.

    Ray Train's own restarts would also repeat what fails with an error of its own.
    """
    restarts = job.recipe.runtime.restarts
    for number in range(1, restarts + 2):
        try:
            _fit(job, workers, device)
            return
        except Exception as error:
            found = [each for each in _chain(error) if isinstance(each, UserError)]
            errors = [each for each in found if not isinstance(each, OthersLost)]
            if errors or number > restarts or not (found or _killed(error)):
                raise _as_user_error(error) from error
            warn(checkpoint.restarting(job.out, "a Ray worker was killed", number, restarts))
            checkpoint.clear_leftovers(job.out)
            stored = checkpoint.newest(job.out)
            job = dataclasses.replace(job, resume=None if stored is None else stored[:2])


def _killed(error: BaseException) -> bool:
    """Whether a worker's process is gone."""
    from ray.exceptions import RayActorError

    return any(isinstance(each, RayActorError) for each in _chain(error))


def _device(device: str, workers: int, gpus: int) -> str:
    """The kind of device of every worker."""
    if device == "auto":
        return "cuda" if gpus >= workers else "cpu"
    if device.startswith("cuda") and gpus < workers:
        what = f"{workers} workers need as many GPUs, and the Ray cluster has {gpus}"
        raise UserError(what, give={"device": "cpu"})
    return device


def _fit(job: Job, workers: int, device: str) -> None:
    """Run the workers, show their progress and pass on signals in the meantime.

    Raises Ray Train's own error.
    """
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    out, gpu = job.out.absolute(), device != "cpu"
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"out": out, "resume": job.resume, "device": device, "path": search_path()},
        torch_config=TorchConfig(
            backend=parallel.backend_of(torch.device(device)),
            timeout_s=int(parallel.TIMEOUT.total_seconds()),
        ),
        scaling_config=ScalingConfig(  # ty: ignore[invalid-argument-type]
            num_workers=workers, use_gpu=gpu, resources_per_worker={"CPU": 1, **({"GPU": 1} if gpu else {})}
        ),
        run_config=RunConfig(name=f"train-{job.done}", storage_path=str(out / RAY)),  # ty: ignore[invalid-argument-type]
    )
    failures: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:  # noqa: BLE001 - raised below, in the thread that called
            failures.append(error)

    # not in the main thread, in which Ray would handle Ctrl-C by killing the workers
    thread = threading.Thread(target=fit, daemon=True)
    with stop_requests(job.out) as request, progress("train", job.recipe.steps, "steps") as advance:
        thread.start()
        done = job.done
        advance(done)
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            if request.requested:
                (job.out / STOP).touch()
            entries = read_log(job.out)
            if entries and entries[-1]["step"] > done:
                advance(entries[-1]["step"] - done, progress_note(entries[-1], job.recipe.steps))
                done = entries[-1]["step"]
    if failures:
        raise failures[0]


def _worker(config: dict[str, Any]) -> None:
    """What each worker does."""
    sys.path += [folder for folder in config["path"] if folder not in sys.path]
    out: Path = config["out"]
    resume: tuple[Path, CheckpointInfo] | None = config["resume"]
    ranks = parallel.from_environment()
    device = parallel.device_of(torch.device(config["device"]), ranks)
    with parallel.joined(ranks, device):
        with ranks.together():
            job = joined_job(out, resume, config["device"])
        train(job, ranks)


def _as_user_error(error: BaseException) -> UserError:
    """The error of the worker that failed first, as far as it is known."""
    found = [each for each in _chain(error) if isinstance(each, UserError)]
    shared = [each for each in found if isinstance(each, EveryRank)]
    if shared or found:
        return (shared or found)[0]
    return UserError(
        f"a Ray worker failed ({one_line(error)})",
        "its log is in Ray's session folder, or use another launcher",
    )


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error of Ray Train and what it wraps: the workers' errors by rank, and causes."""
    if error is None:
        return []
    inside = [each for _, each in sorted(getattr(error, "worker_failures", {}).items())]
    wrapped = [
        getattr(error, name, None)
        for name in ("_base_exc", "controller_failure", "health_check_failure", "cause", "__cause__")
    ]
    nested = [each for each in (*inside, *wrapped) if isinstance(each, BaseException)]
    return [error, *(found for each in nested for found in _chain(each))]


def _result(job: Job) -> TrainingResult:
    """How the run ended, by its folder."""
    found = checkpoint.newest(job.out)
    assert found is not None, "a worker ended without a checkpoint"
    folder, info, _ = found
    means = (value for name, value in info.metrics.items() if name.startswith("mean loss of"))
    loss = next(means, None)
    return TrainingResult(info.step, folder, loss, stopped=info.step < job.recipe.steps)
