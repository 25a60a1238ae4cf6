"""Checkpoints: folders written atomically, with everything that a run needs to resume exactly."""

from __future__ import annotations

import contextlib
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

import torch

import uhr
from uhr.base.config import Config, read_versioned
from uhr.base.console import command
from uhr.base.errors import UserError
from uhr.base.files import saving, sha256_file, sync, write_json
from uhr.base.paths import text_path
from uhr.base.run_folder import all_or_nothing
from uhr.models.files.run_steps import CHECKPOINTS, step_name, steps_in
from uhr.models.files.write import save_tensors
from uhr.models.loading.opening import ModelName
from uhr.train.recipes import read_recipe
from uhr.train.recipes.core.base import leaves
from uhr.train.run.checkpoints import average, divided, optim
from uhr.train.run.checkpoints.state import TrainState, generators, set_generators
from uhr.train.run.processes.parallel import ALONE, Ranks

FILE = "checkpoint.json"
FOLDER = CHECKPOINTS


def generators_file(rank: int) -> str:
    """The name of the file with the process-wide random generators of a process."""
    return f"generators-{rank:05d}.json"


SCHEMA_VERSION = 1

MAY_CHANGE = (
    r"phases\.\d+\.steps",
    r"on_nonfinite",
    r"runtime\.device",
    r"runtime\.shard",
    r"runtime\.checkpoint_every",
    r"runtime\.keep_checkpoints",
    r"runtime\.restarts",
    r"runtime\.data_cache",
    r"runtime\.log",
    r"validation\..*",
    r"sampling\..*",
    # the files are the same, by their hashes in the recipe
    r"phases\.\d+\.objective\.perceptual\.(network_file|heads_file)",
)
"""Values of a recipe that may change when a run is resumed: they do not affect any step that was done."""


class DataRef(Config):
    """Encoded data of a run, identified by `id`; `path` is where it was. `licences` counts `rows`.

    name: under which the recipe uses it. encoding: what of its encoding changes the images of a model, for
    people; empty in a run of an earlier version. trigger: the word that its captions have.
    """

    name: str = "main"
    encoding: str = ""
    trigger: str | None = None
    path: str
    id: str
    manifest_id: str
    rows: int
    licences: dict[str, int]


class ModelRef(Config):
    """The model of which a component is trained.

    name: its hub id, or the name of its folder or file. base: where the rest of the model was, for a lone
    backbone. spec_given: whether the user named the spec. transformer, vae: the hash of the weights of the
    component that is trained; empty of the other. native_size: of the model with the VAE that it has, px;
    None in a run of an earlier version.
    """

    path: str
    name: str
    spec: str
    transformer: str = ""
    vae: str = ""
    base: str | None = None
    spec_given: bool = False
    native_size: int | None = None

    @property
    def weights(self) -> str:
        """The hash of the weights of the component that is trained, before training."""
        return self.transformer or self.vae

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
    skipped: how many steps in a row, up to this one, were skipped because they were not finite.
    """

    schema_version: int = SCHEMA_VERSION
    created: str
    run: str = ""
    step: int
    skipped: int = 0
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
    return run / FOLDER / step_name(step)


def write_checkpoint(
    run: Path,
    state: TrainState,
    facts: Mapping[str, Any],
    metadata: Mapping[str, str],
    ranks: Ranks = ALONE,
) -> Path:
    """Write the state after `state.step` steps; `facts` are the other fields of `CheckpointInfo`, `metadata`
    that of the files of the trainable part and its average.

    The files are written to a temporary folder, `checkpoint.json` last, which is then renamed. If the disk is
    full, the folder is removed, and a UserError names the last step that is saved. Every process of the run
    must call it, and each writes its own files; all see one folder.
    """
    final = folder_of(run, state.step)
    hint = resume_hint(run)
    staging = ranks.from_first(lambda: final.with_name(f".{final.name}.{uuid.uuid4().hex}.tmp"))
    with all_or_nothing(staging) if ranks.first else contextlib.nullcontext():
        with ranks.together(), saving(run / FOLDER, hint):
            if ranks.first:
                staging.mkdir(parents=True)
        if state.divided:
            with saving(run / FOLDER, hint):
                divided.save(state, staging, metadata, ranks)
        with ranks.together(), saving(run / FOLDER, hint):
            if ranks.first and not state.divided:
                _write_whole(staging, state, metadata)
            write_json(staging / generators_file(ranks.rank), generators())
        with ranks.together(), saving(run / FOLDER, hint):
            hashes = _hashes(staging, ranks)
        files = {name: file for own in ranks.objects(hashes) for name, file in own.items()}
        with ranks.together(), saving(run / FOLDER, hint):
            if ranks.first:
                _finish(staging, final, state.step, files, facts)
    return final


def _hashes(staging: Path, ranks: Ranks) -> dict[str, CheckpointFile]:
    """Size and hash of the files that fall to this process, which are all if it is alone."""
    paths = sorted(path for path in staging.rglob("*") if path.is_file())
    return {
        path.relative_to(staging).as_posix(): CheckpointFile(
            bytes=path.stat().st_size, sha256=sha256_file(path)
        )
        for path in paths[ranks.rank :: ranks.world]
    }


def _finish(
    staging: Path, final: Path, step: int, files: Mapping[str, CheckpointFile], facts: Mapping[str, Any]
) -> None:
    """Write `checkpoint.json`, and give the folder its name."""
    info = CheckpointInfo(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        step=step,
        versions=versions(),
        files=dict(sorted(files.items())),
        **facts,
    )
    write_json(staging / FILE, info.model_dump(mode="json"))
    if final.exists():
        # incomplete, or of an earlier run of this step: a rename needs a free name
        remove(final)
    os.replace(staging, final)
    sync(final.parent)


def _write_whole(staging: Path, state: TrainState, metadata: Mapping[str, str]) -> None:
    """Write the state of a process that has all of it."""
    values = json.dumps(state.optimiser_state().values, sort_keys=True)
    own = {
        state.file: dict(metadata),
        "ema": {**metadata, average.MARK: average.WARMED_UP},
        "optimiser": {optim.METADATA: values},
    }
    for name, tensors in state.tensors().items():
        save_tensors(tensors, staging / f"{name}.safetensors", own.get(name))


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


def steps(run: Path) -> list[int]:
    """The steps of all checkpoints, complete or not, in order."""
    return steps_in(run / FOLDER)


def read_info(folder: Path) -> CheckpointInfo:
    """Read `checkpoint.json` and check its files by hash.

    Raises UserError if the checkpoint is incomplete, damaged or of a newer version.
    """
    file = folder / FILE
    if not file.is_file():
        raise UserError(f"{folder} has no {FILE}", "it was never finished: take another checkpoint")
    info = read_versioned(CheckpointInfo, file, SCHEMA_VERSION, "take another checkpoint")
    part = read_recipe(info.recipe).trainable.file
    missing = sorted(_always(info, part) - info.files.keys())
    if missing:
        raise UserError(f"{file} does not list {missing[0]}", "take another checkpoint")
    check_files(folder, info)
    return info


def check_files(folder: Path, info: CheckpointInfo) -> None:
    """Raise UserError if a file of a checkpoint is missing or has another content."""
    for name, stored in info.files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != stored.bytes or sha256_file(path) != stored.sha256:
            state = "is damaged" if path.exists() else "is missing"
            raise UserError(f"{path} {state}", "take another checkpoint")


def is_divided(info: CheckpointInfo) -> bool:
    """Whether its tensors are in parts, one for each process that wrote it."""
    return any(name.startswith(f"{divided.FOLDER}/") for name in info.files)


def _always(info: CheckpointInfo, part: str) -> set[str]:
    """Files without which no run can resume."""
    own = (
        {divided.INDEX, divided.VALUES}
        if is_divided(info)
        else {"optimiser.safetensors", f"{part}.safetensors"}
    )
    return own | {generators_file(0)}


def read_part(folder: Path, info: CheckpointInfo) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The trained part of a checkpoint, whole, and the metadata of its file."""
    from safetensors import safe_open

    if is_divided(info):
        return divided.read(folder, "part")
    part = read_recipe(info.recipe).trainable.file
    with safe_open(folder / f"{part}.safetensors", framework="pt") as opened:
        return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118


def read_average(folder: Path, info: CheckpointInfo) -> dict[str, torch.Tensor]:
    """The average of the part's parameters in a checkpoint of a recipe that keeps one, whole."""
    if is_divided(info):
        return divided.read(folder, "ema")[0]
    return average.read_average(folder / "ema.safetensors", info.recipe["ema"], info.step)


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


def restarting(run: Path, ended: str, number: int, restarts: int) -> str:
    """The line about restart `number` of a run, of which a process has ended as `ended` says."""
    found = newest(run)
    place = "its first step" if found is None else f"step {found[1].step}"
    return f"{ended}: restart {number} of {restarts} at {place}"


def load_checkpoint(folder: Path, info: CheckpointInfo, state: TrainState, ranks: Ranks = ALONE) -> None:
    """Load a checkpoint's tensors into `state`, and restore the process-wide generators.

    A process that the run did not have when it was saved keeps its generators.
    """
    if is_divided(info):
        divided.load(folder, info.step, state)
    else:
        _load_whole(folder, info, state)
    name = generators_file(ranks.rank)
    if name in info.files:
        set_generators(json.loads((folder / name).read_text(encoding="utf-8")))


def _load_whole(folder: Path, info: CheckpointInfo, state: TrainState) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file

    tensors = {name: load_file(folder / f"{name}.safetensors") for name in (state.file, "optimiser")}
    if state.ema is not None:
        tensors["ema"] = read_average(folder, info)
    with safe_open(folder / "optimiser.safetensors", framework="pt") as opened:
        # an earlier version wrote none
        values = json.loads((opened.metadata() or {}).get(optim.METADATA, "{}"))
    state.load(info.step, tensors, values)


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
