"""A training run before its first step: checks recipe, model and data, and writes `run.json`."""

from __future__ import annotations

import contextlib
import datetime
import json
import shutil
import tempfile
import uuid
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uhr.base.config import Config, apply_sets, build, read_versioned
from uhr.base.console import command, say, warn
from uhr.base.errors import UserError
from uhr.base.files import user_path, write_json
from uhr.base.paths import or_similar, path_text, place_text, text_place
from uhr.base.run_folder import FolderLayout, RunFolder, all_or_nothing
from uhr.models.families.registry import FAMILIES
from uhr.models.zoo import Model, ModelName
from uhr.train.data.mixture import Mixture, mixture_of
from uhr.train.data.names import NamedPath
from uhr.train.data.reader import EncodedData
from uhr.train.data.sets import NamedData, check_all_used, check_windows, open_sets
from uhr.train.encode.hashing import shown_weights_hash
from uhr.train.recipes import NAMES, read_recipe, recipe_class
from uhr.train.recipes.core.base import Recipe, RecipeBase, leaves
from uhr.train.recipes.core.vae import VaeRecipe
from uhr.train.run import init
from uhr.train.run.checkpoints import checkpoint, kept
from uhr.train.run.checkpoints.checkpoint import CheckpointInfo, DataRef, InitRef, ModelRef
from uhr.train.run.monitoring import validation_images
from uhr.train.run.monitoring.held_out import check_held_out
from uhr.train.run.monitoring.log import FILE as LOG
from uhr.train.run.monitoring.loggers import FOLDERS as LOGGERS
from uhr.train.run.monitoring.loggers import check_loggers
from uhr.train.run.stop import FILE as STOP

FILE = init.RUN
SCHEMA_VERSION = 1

_LOCK = ".lock"
"""A hidden folder for the lock; it is removed at the end, unless the process is killed."""

RAY = ".ray"
"""What Ray Train writes while it runs."""

LAYOUT = FolderLayout(
    "a run",
    (
        FILE,
        LOG,
        checkpoint.FOLDER,
        kept.FOLDER,
        init.FOLDER,
        validation_images.FOLDER,
        *LOGGERS,
        STOP,
        RAY,
        _LOCK,
    ),
    (FILE, _LOCK),
)


class RunInfo(Config):
    """The content of `run.json`: the resolved recipe, model and data, which a resumed run reads.

    id: of this run; empty if an earlier version began it. init: what it began with.
    """

    schema_version: int = SCHEMA_VERSION
    id: str = ""
    created: str
    recipe: dict[str, Any]
    model: ModelRef
    data: list[DataRef]
    init: tuple[InitRef, ...] = ()


@dataclass(frozen=True)
class Job:
    """A run that can start; `resume` is the checkpoint to resume from."""

    out: Path
    recipe: RecipeBase
    model: Model
    info: RunInfo
    data: list[NamedData]
    resume: tuple[Path, CheckpointInfo] | None

    def mixture_of(self, phase: int) -> Mixture:
        """The order of the phase's batches; each phase has its own."""
        return mixture_of(self.recipe, phase, self.model.spec, self.data)

    @property
    def done(self) -> int:
        """Number of steps done."""
        return self.resume[1].step if self.resume else 0


@contextlib.contextmanager
def lock_run(out: Path) -> Generator[None]:
    """Be the only process that trains in `out`.

    Raises UserError if another process does, or if `out` contains anything but a run.
    """
    folder = RunFolder(out, LAYOUT)
    if not (out / FILE).is_file():
        folder.claim()
    with folder.lock(_LOCK):
        yield


def start(
    recipe: RecipeBase,
    model: str | ModelName,
    data: Sequence[NamedPath | Path | str],
    out: Path,
    begin: Sequence[str | Path] = (),
) -> Job:
    """Create a job in a new folder, or continue the one that is there if it has the same recipe, model and
    data, so that the command of a killed run can be repeated. Raises UserError if they differ.

    begin: runs or adapters that it begins with (`init.find`).
    """
    recipe, info, opened, sets = _check(recipe, ModelName.of(model), data)
    with tempfile.TemporaryDirectory() as staging:
        found = init.find(recipe, opened, begin, Path(staging))
        return _start(info.model_copy(update={"init": found}), recipe, opened, sets, out, Path(staging))


def _start(
    info: RunInfo, recipe: RecipeBase, opened: Model, sets: list[NamedData], out: Path, staging: Path
) -> Job:
    """`start` after all checks of recipe, model and data; `staging` has the files of `init.FOLDER`."""
    if has_begun(out):
        before = read_run(out)
        paths = _differences(before, info)
        differs = checkpoint.shown_changes(_present(before.recipe), info.recipe, paths)
        if differs:
            what = f"{out} already contains a run with another {', another '.join(differs)}"
            if not all(map(checkpoint.may_change, paths)):
                resume = command("train", "resume", out)
                raise UserError(what, f"name another folder with --out, or resume with `{resume}`")
            values = dict(leaves(info.recipe))
            changes = [part for path in paths for part in ("--set", f"{path}={json.dumps(values.get(path))}")]
            raise UserError(what, f"continue it with that: `{command('train', 'resume', out, *changes)}`")
        return _job(out, recipe, opened, before, sets)
    folder = RunFolder(out, LAYOUT)
    folder.claim()
    folder.clear(init.FOLDER)
    info = info.model_copy(update={"id": uuid.uuid4().hex})
    with all_or_nothing(out):
        if info.init:
            shutil.copytree(staging, out / init.FOLDER)
        write_json(out / FILE, info.model_dump(mode="json"))
    for ref in info.init:
        say(init.describe(ref))
    return _job(out, recipe, opened, info, sets)


def has_begun(out: Path) -> bool:
    """Whether a run here has reached its first step; before that its recipe may still change."""
    return (out / FILE).is_file() and (out / LOG).is_file()


def recipe_of(out: Path, sets: Sequence[str] = ()) -> RecipeBase:
    """The recipe of a run's folder, with changes."""
    before = read_run(out)
    present = _present(before.recipe)
    return build(recipe_class(present), apply_sets(present, list(sets)), f"{out / FILE} with --set")


def reopen(
    out: Path,
    sets: Sequence[str] = (),
    model: str | None = None,
    data: Sequence[NamedPath | Path | str] = (),
    base: str | None = None,
) -> Job:
    """The job of a run's folder, from its newest complete checkpoint.

    `sets` may change values that affect no step (`checkpoint.MAY_CHANGE`); `model`, `base` and `data` are the
    new paths of what was moved.
    """
    before, recipe = read_run(out), recipe_of(out, sets)
    was = before.model.named
    if base is None and (model is None or user_path(model).is_file()):
        base = was.base
    named = ModelName(model or was.model, before.model.spec, base)
    data = data or [NamedPath(ref.name, text_place(ref.path)) for ref in before.data]
    places = [each.path if isinstance(each, NamedPath) else each for each in data]
    paths = [("model", Path(named.model)), *(("data", path) for path in places if isinstance(path, Path))]
    paths += [] if named.base is None else [("base", Path(named.base))]
    for name, path in paths:
        if path.is_absolute() and not path.exists():
            what = f"{path}, the {name} of {out}, does not exist"
            raise UserError(what, "name its new path", give={name: "PATH"})
    recipe, info, opened, found = _check(recipe, named, data)
    for name in _differences(before, info.model_copy(update={"init": before.init})):
        if name in ("model", "data"):
            what = f"the {name} is not what {out} was trained with"
            raise UserError(what, "name the path of the original", give={name: "PATH"})
    kept = {
        "id": before.id,
        "created": before.created,
        "init": before.init,
        "model": info.model.model_copy(update={"spec_given": before.model.spec_given}),
    }
    info = info.model_copy(update=kept)
    job = _job(out, recipe, opened, info, found)
    write_json(out / FILE, info.model_dump(mode="json"))
    return job


def joined_job(out: Path, resume: tuple[Path, CheckpointInfo] | None, device: str | None = None) -> Job:
    """The job of a run that another process has started or reopened; writes nothing.

    resume: as that process found it. device: in place of the recipe's.
    """
    info = read_run(out)
    recipe = read_recipe(info.recipe)
    data = [NamedPath(ref.name, text_place(ref.path)) for ref in info.data]
    recipe, found, opened, sets = _check(recipe, info.model.named, data)
    differs = _differences(info, found.model_copy(update={"init": info.init}))
    if differs:
        what = f"this process sees another {', another '.join(differs)} than the first process of {out}"
        raise UserError(what, "give all machines the same files under the same paths")
    if device is not None:
        runtime = recipe.runtime.model_copy(update={"device": device})
        recipe = recipe.model_copy(update={"runtime": runtime})
    return Job(out, recipe, opened, info, sets, resume)


def _check(
    recipe: RecipeBase, model: ModelName, data: Sequence[NamedPath | Path | str]
) -> tuple[RecipeBase, RunInfo, Model, list[NamedData]]:
    """Open model and data, and complete the recipe with hashes of the files that it names.

    Raises UserError if they do not fit each other or the recipe.
    """
    component = recipe.trainable.component
    opened = model.open(components=(component,))
    recipe.check(opened.spec)
    recipe.sampling.check()
    if isinstance(recipe, VaeRecipe):
        recipe = recipe.pinned()
    found = open_sets(recipe, data)
    for each in found:
        _check_data(each.data, opened, component)
    if isinstance(recipe, Recipe):
        check_windows(recipe, opened.spec, found)
    check_all_used(recipe, opened.spec, found)
    for index in range(len(recipe.phases)):
        mixture_of(recipe, index, opened.spec, found)
    check_held_out(recipe, opened.spec, found)
    if isinstance(recipe, Recipe):
        validation_images.check(recipe, opened.spec)
    check_loggers(recipe.runtime.log)
    for note in recipe.notes(opened.spec):
        warn(note)
    info = RunInfo(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        recipe=recipe.model_dump(mode="json"),
        model=_model_ref(opened, component, spec_given=model.spec is not None),
        data=[_data_ref(each) for each in found],
    )
    return recipe, info, opened, found


def _model_ref(opened: Model, component: str, spec_given: bool) -> ModelRef:
    source, backbone = opened.source, opened.backbone
    # absolute, so that the run can be resumed from another working folder
    whole = source.text if source.repository else path_text(opened.folder.absolute())
    name = source.text if source.repository else opened.folder.resolve().name
    return ModelRef(
        path=whole if backbone is None else path_text(backbone.absolute()),
        name=name if backbone is None else backbone.resolve().name,
        spec=opened.spec.name,
        **{component: shown_weights_hash(opened, component)},
        base=None if backbone is None else whole,
        spec_given=spec_given,
        native_size=opened.spec.native_size,
    )


def _data_ref(named: NamedData) -> DataRef:
    info = named.data.info
    return DataRef(
        name=named.name,
        path=place_text(named.data.path),
        id=info.id,
        manifest_id=info.manifest.id,
        rows=info.counts["encoded"],
        licences=info.licences,
        encoding=info.describe_encoding(),
        trigger=info.config.trigger,
    )


def _check_data(data: EncodedData, model: Model, component: str) -> None:
    """Raise UserError if data were encoded for a model with other latents or texts, or have pixels where
    latents are trained on.
    """
    info, spec = data.info, model.spec
    if info.config.pixels != (component == "vae"):
        has, needs = ("pixels", "latents") if info.config.pixels else ("latents", "pixels")
        what = f"{data.path} has {has}, and a {component} is trained on {needs}"
        how = "with" if needs == "pixels" else "without"
        raise UserError(what, f"encode the same slice into another folder, {how} --pixels")
    if component == "vae":
        return
    pairs = {
        "family": (info.model.family, spec.family),
        "latent channels": (info.geometry.latent_channels, spec.latent_channels),
        "VAE factor": (info.geometry.vae_factor, spec.vae_factor),
        "text lengths": (info.model.text_lengths, dict(spec.text_lengths)),
        "text tensors": (list(info.geometry.text_shapes), list(FAMILIES[spec.family].text_tensors)),
    }
    for name, (encoded, expected) in pairs.items():
        if encoded != expected:
            raise UserError(
                f"{data.path} has {name} {encoded} (encoded for {info.model.spec}), {spec.name} {expected}",
                "encode again with this model",
            )


def read_run(out: Path) -> RunInfo:
    """Read `run.json` of a run's folder. Raises UserError if there is none."""
    if not (out / FILE).is_file():
        fix = or_similar(out, "name the folder that `uhr train run --out` wrote")
        raise UserError(f"{out} is not a run", fix)
    return read_versioned(RunInfo, out / FILE, SCHEMA_VERSION, "restore it, or start a new run")


def _differences(before: RunInfo, after: RunInfo) -> list[str]:
    """What differs between two runs: paths in the recipe, "model", "data", "init". Locations do not
    count."""
    differs = checkpoint.changed(_present(before.recipe), after.recipe)
    if before.model.weights != after.model.weights:
        differs.append("model")
    if sorted((ref.name, ref.id) for ref in before.data) != sorted((ref.name, ref.id) for ref in after.data):
        differs.append("data")
    if _begun_with(before) != _begun_with(after):
        differs.append("init")
    return differs


def kept_values(out: Path, recipe: RecipeBase) -> list[str]:
    """What a run that has begun has other values of than `recipe`, each with both: it was resumed with these.

    Empty if something differs that a resumed run may not change, which `start` refuses.
    """
    if not has_begun(out):
        return []
    own, other = _present(read_run(out).recipe), recipe.model_dump(mode="json")
    paths = checkpoint.changed(own, other)
    if not all(map(checkpoint.may_change, paths)):
        return []
    return checkpoint.shown_changes(other, own, paths)


def _begun_with(info: RunInfo) -> list[tuple[str, str]]:
    return [(ref.use, ref.sha256) for ref in info.init]


def _present(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A stored recipe with the keys of this version."""
    return read_recipe(recipe).model_dump(mode="json")


def _job(out: Path, recipe: RecipeBase, model: Model, info: RunInfo, data: list[NamedData]) -> Job:
    checkpoint.clear_leftovers(out)
    kept.clear_leftovers(out)
    found = checkpoint.newest(out)
    if found is None:
        return Job(out, recipe, model, info, data, None)
    folder, stored, faults = found
    for fault in faults:
        warn(f"{fault}: resuming from step {stored.step}")
    _check_history(recipe, stored, out)
    return Job(out, recipe, model, info, data, (folder, stored))


def _check_history(recipe: RecipeBase, stored: CheckpointInfo, out: Path) -> None:
    """Raise UserError if the steps done so far are not steps of this recipe."""
    before, after = _present(stored.recipe), recipe.model_dump(mode="json")
    differs = checkpoint.changed(before, after)
    not_allowed = [path for path in differs if not checkpoint.may_change(path)]
    if not_allowed:
        shown = checkpoint.shown_changes(before, after, not_allowed)
        name = recipe.name if recipe.name in NAMES else "RECIPE"
        begin = command("train", "run", name, "--init", out)
        raise UserError(
            f"the run so far had another {', another '.join(shown)}",
            "only steps, device, checkpoints, restarts, log, data_cache, validation and on_nonfinite may "
            "change: leave it as it was, or begin a new run with its weights, "
            f"`{begin} --model M --data DIR --out NEW --set ...`",
        )
    if recipe.steps < stored.step:
        raise UserError(
            f"the run is already at step {stored.step}", "give its phases at least that many steps"
        )
    was = read_recipe(stored.recipe)
    done = zip(was.done_by_phase(stored.step), recipe.done_by_phase(stored.step), strict=True)
    for number, (one, two) in enumerate(done):
        phase = recipe.phases[number]
        if one and phase.schedule != "constant" and phase.steps != was.phases[number].steps:
            what = f"phase '{phase.name}' has begun, and its {phase.schedule} schedule depends on its steps"
            fix = f"--set phases.{phase.name}.steps={was.phases[number].steps}, or start a new run"
            raise UserError(what, fix)
        if one != two:
            raise UserError(
                f"phase '{phase.name}' is over, with {one} steps", f"--set phases.{phase.name}.steps={one}"
            )
