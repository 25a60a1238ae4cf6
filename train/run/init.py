"""Runs that begin with trained weights (`--init`): fused with the frozen ones, or trained further.

What is fused is copied into the run's folder, as the file that must be loaded together with the run's export.
Another run's weights are written as `uhr train export` writes them, so that both files have the same SHA-256.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from uhr.base.console import warn
from uhr.base.errors import UserError, one_line
from uhr.base.files import sha256_file, user_path
from uhr.base.paths import or_similar, path_text
from uhr.models.adapters import files as adapters
from uhr.models.adapters.formats.keys import layout_of
from uhr.models.adapters.formats.usage import Usage
from uhr.models.adapters.merging import fuse
from uhr.models.estimate.shapes import empty_components
from uhr.models.files.adapter import lora_file
from uhr.models.files.run_steps import RUN, split_step
from uhr.models.loading.model import empty_transformer
from uhr.models.publish.component import NAME as COMPONENT
from uhr.models.publish.export import RECORD, WEIGHTS, write_lora
from uhr.models.specs.spec import ModelSpec
from uhr.models.zoo import Model
from uhr.train.recipes import read_recipe
from uhr.train.recipes.core.base import RecipeBase
from uhr.train.run.checkpoints import checkpoint, kept
from uhr.train.run.checkpoints.checkpoint import CheckpointInfo, InitRef
from uhr.train.trainable.adapters import FUSED, Adapter

_A_VAE = "name a run, or the folder or file of a VAE"

FOLDER = "init"
"""The subfolder of a run with the adapters that are fused."""


def find(recipe: RecipeBase, model: Model, given: Sequence[str | Path], staging: Path) -> tuple[InitRef, ...]:
    """Find what a run begins with, and write the adapters that are fused into the folder `staging`.

    given: folders of runs, `RUN@STEP` for another checkpoint than the newest, folders of adapters, or files,
    in the order in which they build on each other.
    Raises UserError if the recipe requires one, and for one that does not fit the model or the recipe.
    """
    if not given:
        if recipe.init.after is not None:
            what = f"recipe {recipe.name} begins with the result of {recipe.init.after}"
            fix = "give its run or adapter with --init, or begin with the model: --set init.after=null"
            raise UserError(what, fix)
        return ()
    component = recipe.trainable.component
    if component == "vae" and len(given) > 1:
        raise UserError(f"--init names {len(given)} places, and a VAE begins with one", "name one")
    uses = ["fuse"] * (len(given) - 1) + [recipe.init.use]
    refs: list[InitRef] = []
    for use, entry in zip(uses, given, strict=True):
        path = _of_step(user_path(entry))
        if not path.exists():
            known = _A_VAE if component == "vae" else "name a run, a checkpoint of one, or an adapter"
            raise UserError(f"--init {path} does not exist", or_similar(path, known))
        # the file of a checkpoint is named by its folder, which says more
        if path.stem not in ("ema", "optimiser") and (path.parent / checkpoint.FILE).is_file():
            path = path.parent
        is_run = (path / RUN).is_file() or (path / checkpoint.FILE).is_file()
        if component == "vae" and not is_run:
            refs.append(_of_vae(path, model))
            continue
        find_one = _of_run if is_run else _of_file
        refs += find_one(recipe, model, path, use, staging, refs)
    _check(recipe, model, refs, staging)
    return tuple(refs)


def _of_step(path: Path) -> Path:
    """The folder of what `RUN@STEP` names, a checkpoint or the adapter kept of one; any other path as it is.

    Raises UserError, which lists the steps that exist, if the run has nothing of this step.
    """
    named = split_step(path)
    return path if named is None else kept.find(*named)[0]


def describe(ref: InitRef) -> str:
    """Return in one line what a run takes over, which is never an optimiser's state."""
    which = f"{ref.name}, step {ref.step:,}" if ref.step is not None else ref.name
    if ref.use == "fuse":
        return f"begins with {which}, added to the frozen weights; a new part is trained on top"
    return f"begins with the weights of {which}; optimiser, average and schedule begin anew"


def _of_run(
    recipe: RecipeBase, model: Model, path: Path, use: str, staging: Path, before: Sequence[InitRef]
) -> list[InitRef]:
    """A run's checkpoint, after what that run was trained on top of."""
    folder, info = _checkpoint(path)
    run = folder.parent.parent
    theirs = read_recipe(info.recipe)
    if info.model.spec != model.spec.name and not isinstance(theirs.trainable, Adapter):
        raise UserError(
            f"--init {path} trained {info.model.spec}", f"name one that trained {model.spec.name}"
        )
    _check_recipe(path, theirs, recipe, use)
    _check_base(path, info.model.weights, info.model.name, model, recipe.trainable.component)
    base = [_copied(ref, run / FOLDER, staging, before) for ref in info.init if ref.use == "fuse"]
    # what was saved in parts has no file of its own: the record has the hashes of all of them
    divided = checkpoint.is_divided(info)
    file = folder / (checkpoint.FILE if divided else f"{theirs.trainable.file}.safetensors")
    stored = None
    if use == "fuse":
        part = theirs.trainable
        if not isinstance(part, Adapter):
            raise UserError(f"--init {path} trained {part.kind}", "export it, and name that as --model")
        stored = _free(theirs.name, staging)
        usage = part.usage(over(info.init)).sampled(theirs.sampling.intended)
        tensors, _ = checkpoint.read_part(folder, info)
        write_lora(tensors, part.lora(model.spec), staging / stored, model.spec, usage)
    elif (one := theirs.trainable.model_dump()) != (two := recipe.trainable.model_dump()):
        names = sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))
        sets = " ".join(f"--set trainable.{name}={json.dumps(one.get(name))}" for name in names)
        raise UserError(f"--init {path} trained another part ({', '.join(names)})", sets)
    own = InitRef(
        use="fuse" if use == "fuse" else "continue",
        path=path_text((file if stored is None else run).absolute()),
        sha256=sha256_file(file if stored is None else staging / stored),
        stored=stored,
        recipe=theirs.name,
        run=info.run or None,
        step=info.step,
        init=info.init,
    )
    return [*base, own]


def _check_recipe(path: Path, theirs: RecipeBase, recipe: RecipeBase, use: str) -> None:
    """Raise UserError if what another recipe trains cannot become what this one begins with.

    Warns if it can, and this recipe begins with the result of a third one.
    """
    after = recipe.init.after
    what = f"--init {path} is a run of {theirs.name}, which trains '{theirs.trainable.kind}'"
    right = f"give a run of {after}" if after is not None else f"take recipe {theirs.name}"
    if use == "continue" and theirs.trainable.kind != recipe.trainable.kind:
        fusable = isinstance(theirs.trainable, Adapter) and not theirs.trainable.needs_guide
        fix = f"{right}, or add it to the frozen weights: {FUSED}" if fusable else right
        raise UserError(f"{what}, and {recipe.name} trains '{recipe.trainable.kind}'", fix)
    if use == "fuse" and theirs.trainable.needs_guide:
        raise UserError(f"{what}, on guide tokens alone: it cannot be fused with the weights", right)
    if after is not None and theirs.name != after and use == recipe.init.use:
        warn(f"recipe {recipe.name} begins with the result of {after}, and {path} is a run of {theirs.name}")


def _checkpoint(path: Path) -> tuple[Path, CheckpointInfo]:
    """The checkpoint in a folder, or the newest complete one of a run."""
    if (path / checkpoint.FILE).is_file():
        return path, kept.read(path)
    found = checkpoint.newest(path)
    if found is None:
        raise UserError(f"--init {path}: this run has no checkpoint yet", "train it first")
    folder, info, faults = found
    for fault in faults:
        warn(f"{fault}: beginning with step {info.step}")
    return folder, info


def _of_file(
    recipe: RecipeBase, model: Model, path: Path, use: str, staging: Path, before: Sequence[InitRef]
) -> list[InitRef]:
    """An adapter's file, with what the record of `uhr train export` beside it says."""
    file = lora_file(path)
    record = _record(file, sha256_file(file))
    if record:
        _check_base(path, record.get("base_weights"), record.get("base_model", "another model"), model)
    stored = None
    if use == "fuse":
        stored = _free(file.parent.name if file.name == WEIGHTS else file.stem, staging)
        shutil.copyfile(file, staging / stored)
    own = InitRef(
        use="fuse" if use == "fuse" else "continue",
        path=path_text(file.absolute()),
        sha256=sha256_file(file),
        stored=stored,
        recipe=record.get("recipe"),
        run=record.get("run") or None,
        step=record.get("steps"),
        init=tuple(InitRef.model_validate(entry) for entry in record.get("init", ())),
    )
    return [own]


def _of_vae(path: Path, model: Model) -> InitRef:
    """The weights of a VAE, with what the record of `uhr train export` beside them says."""
    file = path / f"{COMPONENT}.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"--init {path} has no {file.name}", _A_VAE)
    sha256 = sha256_file(file)
    record = _record(file, {file.name: sha256})
    if record:
        _check_base(path, record["base_weights"], record["base_model"], model, "vae")
    return InitRef(
        use="continue",
        path=path_text(file.absolute()),
        sha256=sha256,
        recipe=record.get("recipe"),
        run=record.get("run") or None,
        step=record.get("steps"),
        init=tuple(InitRef.model_validate(entry) for entry in record.get("init", ())),
    )


def _record(file: Path, sha256: str | Mapping[str, str]) -> dict[str, Any]:
    """The record beside exported weights; empty if there is none with this `sha256`.

    Raises UserError if the record cannot be read.
    """
    place = file.with_name(RECORD)
    if not place.is_file():
        return {}
    try:
        record = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fix = "restore it, or remove it to begin with the weights alone"
        raise UserError(f"{place} cannot be read ({one_line(error)})", fix) from None
    return record if isinstance(record, dict) and record.get("sha256") == sha256 else {}


def _check_base(
    path: Path, weights: str | None, name: str, model: Model, component: str = "transformer"
) -> None:
    from uhr.train.encode.hashing import shown_weights_hash

    if weights is not None and weights != shown_weights_hash(model, component):
        warn(f"--init {path} was trained on other weights ({name})")


def _copied(ref: InitRef, folder: Path, staging: Path, before: Sequence[InitRef]) -> InitRef:
    """The entry of a file in another run's folder, copied from there."""
    assert ref.stored is not None
    if any(other.sha256 == ref.sha256 for other in before):
        raise UserError(f"--init names {ref.name} twice", "leave it out: the other run contains it")
    stored = _free(Path(ref.stored).stem, staging)
    shutil.copyfile(_intact(folder / ref.stored, ref), staging / stored)
    return ref.model_copy(update={"stored": stored})


def _free(name: str, folder: Path) -> str:
    """A name for a file in `folder`, from that of a recipe or file."""
    plain = "".join(c if c.isalnum() or c in "-_@." else "-" for c in name)
    taken = {path.stem for path in folder.iterdir()}
    number, free = 2, plain
    while free in taken:
        number, free = number + 1, f"{plain}-{number}"
    return f"{free}.safetensors"


def _intact(file: Path, ref: InitRef) -> Path:
    """The file, checked by its hash. Raises UserError if it is not the one that was read before."""
    if not file.is_file():
        raise UserError(f"{file} is missing", f"copy it back: {ref.path}, SHA-256 {ref.sha256}")
    if sha256_file(file) != ref.sha256:
        raise UserError(f"{file} has changed", f"copy it back: {ref.path}, SHA-256 {ref.sha256}")
    return file


def _check(recipe: RecipeBase, model: Model, refs: Sequence[InitRef], staging: Path) -> None:
    """Raise UserError unless all files fit the model, each other, and the recipe's part."""
    if recipe.trainable.component == "vae":
        recipe.trainable.read(user_path(refs[-1].path), empty_components(model)["vae"], model.spec)
        return
    transformer = empty_transformer(model)
    hashes = {ref.sha256 for ref in refs}
    for ref in refs:
        if ref.use == "fuse":
            assert ref.stored is not None
            file = _fusable(staging / ref.stored, ref, transformer)
            file.check_fits(transformer)
            _check_needed(file.usage, ref, hashes)
    last = refs[-1]
    if last.use == "continue" and isinstance(recipe.trainable, Adapter):
        recipe.trainable.prepare(transformer, model.spec, recipe.seed)
        place = user_path(last.path)
        recipe.trainable.read(place, transformer, model.spec)
        _check_needed(adapters.read(place, layout_of(transformer)).usage, last, hashes)


def _fusable(path: Path, ref: InitRef, transformer: Any) -> adapters.AdapterFile:
    """Read a file that is fused. Raises UserError for one that is not a change of weights alone."""
    file = adapters.read(path, layout_of(transformer))
    if file.usage.tokens != "all":
        raise UserError(
            f"{ref.path} acts on guide tokens alone and cannot be fused", "--set init.use=continue"
        )
    if file.factors:
        what = f"{ref.path} has minor factors, which are no change of weights by themselves"
        raise UserError(what, "use the LoRA that their authors' converter makes of them")
    if file.clip:
        raise UserError(f"{ref.path} also changes CLIP, which training does not load", "use one without")
    return file


def _check_needed(usage: Usage, ref: InitRef, hashes: set[str]) -> None:
    for name, needed in usage.over.items():
        if needed not in hashes:
            what = f"{ref.path} was trained on top of '{name}' (SHA-256 {needed[:12]}...)"
            raise UserError(what, "give that one with --init before it")


def over(refs: Sequence[InitRef]) -> dict[str, str]:
    """The adapters that must be loaded together with what a run trains, those that it fused: name ->
    SHA-256."""
    return {Path(ref.stored).stem: ref.sha256 for ref in refs if ref.stored is not None}


def fuse_into(transformer: Any, refs: Sequence[InitRef], run: Path) -> None:
    """Add a run's fused adapters to the weights; those of quantised weights stay adapters, frozen.

    `run` is its folder, with the copies of the files.
    """
    for number, ref in enumerate(refs):
        if ref.use == "fuse":
            assert ref.stored is not None
            path = _intact(run / FOLDER / ref.stored, ref)
            file = _fusable(path, ref, transformer)
            _check_finite(load_file(path), ref)
            fuse(transformer, file.lora, f"init_{number}", str(path))


def read(
    transformer: Any, refs: Sequence[InitRef], recipe: RecipeBase, spec: ModelSpec
) -> Mapping[str, torch.Tensor]:
    """The weights that a run trains further, by the names of the part's file; none if it begins anew.

    `transformer` has the prepared part.
    """
    if not refs or refs[-1].use != "continue":
        return {}
    path = _intact(user_path(refs[-1].path), refs[-1])
    if path.name == checkpoint.FILE:
        # its parts have the names of the trained part
        found = checkpoint.read_part(path.parent, checkpoint.read_info(path.parent))[0]
    else:
        found = recipe.trainable.read(path, transformer, spec)
    _check_finite(found, refs[-1])
    return found


def _check_finite(tensors: Mapping[str, torch.Tensor], ref: InitRef) -> None:
    """Raise UserError if an adapter has values that would make every loss infinite or NaN."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(
                f"{ref.path}: {name} has values that are not finite", "begin with another adapter"
            )
