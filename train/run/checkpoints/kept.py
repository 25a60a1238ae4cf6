"""The trained weights of every checkpoint, which are kept when the checkpoint itself is removed.

An adapter is small, and one of an earlier step may be the best one. The optimiser's state, which is twice as
large, is of use to resume alone. A whole backbone is removed with its checkpoint.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

from uhr.base.config import read_versioned
from uhr.base.files import sync, write_json
from uhr.base.run_folder import all_or_nothing
from uhr.models.files.run_steps import WEIGHTS, check_step, step_name
from uhr.train.recipes import read_recipe
from uhr.train.run.checkpoints import checkpoint
from uhr.train.run.checkpoints.checkpoint import CheckpointInfo

FOLDER = WEIGHTS
"""The subfolder of a run, with a folder for each step: the part's files and `checkpoint.json`."""


def keep_newest(run: Path, count: int) -> None:
    """Remove all checkpoints but the newest `count`; the adapters in the others are kept."""
    for step in checkpoint.steps(run)[:-count]:
        folder = checkpoint.folder_of(run, step)
        if (folder / checkpoint.FILE).is_file():
            _keep(run, folder, step)
        checkpoint.remove(folder)


def _keep(run: Path, folder: Path, step: int) -> None:
    """Copy the trained part of a checkpoint, its average and its record, if it is an adapter."""
    info = _record(folder)
    part = read_recipe(info.recipe).trainable
    final = run / FOLDER / step_name(step)
    if not part.removable or checkpoint.is_divided(info) or final.exists():
        return
    names = [name for name in (f"{part.file}.safetensors", "ema.safetensors") if name in info.files]
    staging = final.with_name(f".{final.name}.{uuid.uuid4().hex}.tmp")
    with all_or_nothing(staging):
        staging.mkdir(parents=True)
        for name in names:
            shutil.copyfile(folder / name, staging / name)
            sync(staging / name)
        kept = info.model_copy(update={"files": {name: info.files[name] for name in names}})
        write_json(staging / checkpoint.FILE, kept.model_dump(mode="json"))
    os.replace(staging, final)
    sync(final.parent)


def clear_leftovers(run: Path) -> None:
    """Remove temporary folders of a killed run."""
    for path in (run / FOLDER).glob(".step-*.tmp"):
        shutil.rmtree(path)


def find(run: Path, step: int) -> tuple[Path, CheckpointInfo]:
    """The folder with the trained part as it was after a step, and its record: a checkpoint, or what was kept
    of one. Raises UserError if there is none, or if its files are damaged.
    """
    check_step(run, step)
    is_whole = step in checkpoint.steps(run)
    folder = checkpoint.folder_of(run, step) if is_whole else run / FOLDER / step_name(step)
    return folder, read(folder)


def read(folder: Path) -> CheckpointInfo:
    """The record of a checkpoint, or of what was kept of one. Raises UserError if its files are damaged."""
    if folder.parent.name != FOLDER:
        return checkpoint.read_info(folder)
    info = _record(folder)
    checkpoint.check_files(folder, info)
    return info


def _record(folder: Path) -> CheckpointInfo:
    fix = "take another checkpoint"
    return read_versioned(CheckpointInfo, folder / checkpoint.FILE, checkpoint.SCHEMA_VERSION, fix)
