"""Checkpoints: folders written atomically, with everything that a run needs to resume exactly."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import uhr
from uhr.base.config import Config, read_versioned
from uhr.base.console import command
from uhr.base.errors import UserError
from uhr.base.files import saving, sha256_file, sync, write_json
from uhr.base.paths import text_path
from uhr.base.run_folder import all_or_nothing
from uhr.models.files.write import save_tensors
from uhr.models.loading.opening import ModelName
from uhr.train.recipes.base import Recipe, leaves
from uhr.train.run import average, optim
from uhr.train.run.state import TrainState, generators, set_generators

FILE = "checkpoint.json"
FOLDER = "checkpoints"
GENERATORS = "generators-00000.json"
"""The random generators of process 0."""

ALWAYS = {"optimiser.safetensors", GENERATORS}
"""Files without which no run can resume; the file of the trainable part is another."""

SCHEMA_VERSION = 1
_NAME = re.compile(r"step-(\d{8})")

MAY_CHANGE = (
    r"phases\.\d+\.steps",
    r"runtime\.device",
    r"runtime\.checkpoint_every",
    r"runtime\.keep_checkpoints",
    r"runtime\.log",
    r"validation\..*",
)
"""Values of a recipe that may change when a run is resumed: they do not affect any step."""


class DataRef(Config):
    """Encoded data of a run, identified by `id`; `path` is where it was. `licences` counts `rows`.

    name: under which the recipe uses it.
    """

    name: str = "main"
    path: str
    id: str
    manifest_id: str
    rows: int
    licences: dict[str, int]


class ModelRef(Config):
    """The frozen backbone.

    name: its hub id, or the name of its folder or file. transformer: the hash of its weights. base: where the
    rest of the model was, for a lone backbone. spec_given: whether the user named the spec.
    """

    path: str
    name: str
    spec: str
    transformer: str
    base: str | None = None
    spec_given: bool = False

    @property
    def named(self) -> ModelName:
        """The model as the user named it, with absolute paths."""
        base = None if self.base is None else str(text_path(self.base))
        return ModelName(str(text_path(self.path)), self.spec if self.spec_given else None, base)


class InitRef(Config):
    """Trained weights that a run began with.

    use: whether they were added to the frozen weights, or trained further.
    path: where they were; empty in the record of an export.
    sha256: of the file that was read, and that an export names.
    stored: the copy in the run's folder, from which a resumed run fuses them; None if it needs no copy.
    recipe, run, step: those that trained them, if known. init: what that run began with.
    """

    use: Literal["continue", "fuse"]
    path: str = ""
    sha256: str
    stored: str | None = None
    recipe: str | None = None
    run: str | None = None
    step: int | None = None
    init: tuple[InitRef, ...] = ()

    @property
    def name(self) -> str:
        """A name for people: that of the recipe, or of the file."""
        return self.recipe or text_path(self.path).stem

    def lineage(self) -> dict[str, Any]:
        """All of it except paths of this machine, as JSON."""
        values = self.model_dump(mode="json", exclude={"path", "stored", "init"})
        return {**values, "init": [ref.lineage() for ref in self.init]}


class CheckpointFile(Config):
    """Size and hash of one file of a checkpoint."""

    bytes: int
    sha256: str


class CheckpointInfo(Config):
    """The content of `checkpoint.json`: `step` steps are done; batch `batch` of `epoch` in `phase` is
    next.

    run: the id of the run; empty if an earlier version began it. init: what the run began with.
    """

    schema_version: int = SCHEMA_VERSION
    created: str
    run: str = ""
    step: int
    phase: int
    epoch: int
    batch: int
    recipe: dict[str, Any]
    model: ModelRef
    data: list[DataRef]
    init: tuple[InitRef, ...] = ()
    surgeries: list[dict[str, Any]]
    metrics: dict[str, float]
    versions: dict[str, str]
    files: dict[str, CheckpointFile]


def folder_of(run: Path, step: int) -> Path:
    return run / FOLDER / f"step-{step:08d}"


def write_checkpoint(
    run: Path, state: TrainState, facts: Mapping[str, Any], metadata: Mapping[str, str]
) -> Path:
    """Write the state after `state.step` steps; `facts` are the other fields of `CheckpointInfo`, `metadata`
    that of the files of the trainable part and its average.

    The files are written to a temporary folder, `checkpoint.json` last, which is then renamed. If the disk is
    full, the folder is removed, and a UserError names the last step that is saved.
    """
    final = folder_of(run, state.step)
    staging = final.with_name(f".{final.name}.{uuid.uuid4().hex}.tmp")
    with saving(run / FOLDER, resume_hint(run)), all_or_nothing(staging):
        _fill(staging, state, facts, metadata)
        if final.exists():
            # incomplete, or of an earlier run of this step: a rename needs a free name
            remove(final)
        os.replace(staging, final)
        sync(final.parent)
    return final


def _fill(staging: Path, state: TrainState, facts: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    staging.mkdir(parents=True)
    values = json.dumps(state.optimiser_state().values, sort_keys=True)
    own = {
        state.file: dict(metadata),
        "ema": {**metadata, average.MARK: average.WARMED_UP},
        "optimiser": {optim.METADATA: values},
    }
    for name, tensors in state.tensors().items():
        save_tensors(tensors, staging / f"{name}.safetensors", own.get(name))
    write_json(staging / GENERATORS, generators())
    files = {
        path.name: CheckpointFile(bytes=path.stat().st_size, sha256=sha256_file(path))
        for path in sorted(staging.iterdir())
    }
    info = CheckpointInfo(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        step=state.step,
        versions=versions(),
        files=files,
        **facts,
    )
    write_json(staging / FILE, info.model_dump(mode="json"))


def resume_hint(run: Path) -> str:
    """The fix for a full disk: which step is saved, and the command that resumes."""
    saved = steps(run)
    state = f"step {saved[-1]} is saved" if saved else "no step is saved yet"
    return f"{state}; free space, then `{command('train', 'resume', run)}`"


def remove(folder: Path) -> None:
    """Remove a checkpoint; it is renamed first, so that no incomplete one is ever found."""
    gone = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    os.replace(folder, gone)
    shutil.rmtree(gone)


def clear_leftovers(run: Path) -> None:
    """Remove temporary folders of a killed run."""
    for path in (run / FOLDER).glob(".step-*.tmp"):
        shutil.rmtree(path)


def keep_newest(run: Path, count: int) -> None:
    """Remove all checkpoints but the newest `count`."""
    for step in steps(run)[:-count]:
        remove(folder_of(run, step))


def steps(run: Path) -> list[int]:
    """The steps of all checkpoints, complete or not, in order."""
    if not (run / FOLDER).is_dir():
        return []
    found = (_NAME.fullmatch(path.name) for path in (run / FOLDER).iterdir())
    return sorted(int(match[1]) for match in found if match)


def read_info(folder: Path) -> CheckpointInfo:
    """Read `checkpoint.json` and check its files by hash.

    Raises UserError if the checkpoint is incomplete, damaged or of a newer version.
    """
    file = folder / FILE
    if not file.is_file():
        raise UserError(f"{folder} has no {FILE}", "it was never finished: take another checkpoint")
    info = read_versioned(CheckpointInfo, file, SCHEMA_VERSION, "take another checkpoint")
    part = Recipe.model_validate(info.recipe).trainable.file
    missing = sorted({*ALWAYS, f"{part}.safetensors"} - info.files.keys())
    if missing:
        raise UserError(f"{file} does not list {missing[0]}", "take another checkpoint")
    for name, stored in info.files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != stored.bytes or sha256_file(path) != stored.sha256:
            state = "is damaged" if path.exists() else "is missing"
            raise UserError(f"{path} {state}", "take another checkpoint")
    return info


def newest(run: Path) -> tuple[Path, CheckpointInfo, list[str]] | None:
    """The newest complete checkpoint, and what is wrong with each newer one; None if there are no
    checkpoints.

    Raises UserError if there are checkpoints and none of them is complete.
    """
    faults: list[str] = []
    for step in reversed(steps(run)):
        folder = folder_of(run, step)
        try:
            return folder, read_info(folder), faults
        except UserError as error:
            faults.append(error.what)
    if faults:
        raise UserError(f"no checkpoint of {run} is complete ({'; '.join(faults)})", "start the run anew")
    return None


def load_checkpoint(folder: Path, info: CheckpointInfo, state: TrainState) -> None:
    """Load a checkpoint's tensors into `state`, and restore the process-wide generators."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    tensors = {name: load_file(folder / f"{name}.safetensors") for name in (state.file, "optimiser")}
    if state.ema is not None:
        tensors["ema"] = average.read_average(folder / "ema.safetensors", info.recipe["ema"], info.step)
    with safe_open(folder / "optimiser.safetensors", framework="pt") as opened:
        # an earlier version wrote none
        values = json.loads((opened.metadata() or {}).get(optim.METADATA, "{}"))
    state.load(info.step, tensors, values)
    set_generators(json.loads((folder / GENERATORS).read_text(encoding="utf-8")))


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Dotted paths at which two resolved recipes differ."""
    one, two = dict(leaves(before)), dict(leaves(after))
    return sorted(path for path in one.keys() | two.keys() if one.get(path) != two.get(path))


def shown_changes(before: Mapping[str, Any], after: Mapping[str, Any], paths: Sequence[str]) -> list[str]:
    """Each path with its values before and after, as JSON: `phases.0.lr (0.0001 -> 0.01)`."""
    one, two = dict(leaves(before)), dict(leaves(after))
    return [
        f"{path} ({json.dumps(one.get(path))} -> {json.dumps(two.get(path))})"
        if path in one or path in two
        else path
        for path in paths
    ]


def may_change(path: str) -> bool:
    """Whether a resumed run may have another value there."""
    return any(re.fullmatch(pattern, path) for pattern in MAY_CHANGE)


def versions() -> dict[str, str]:
    """Versions of the packages on which a step's numbers depend."""
    packages = ("torch", "diffusers", "peft", "transformers", "numpy")
    return {"uhr": uhr.__version__} | {name: importlib.metadata.version(name) for name in packages}
