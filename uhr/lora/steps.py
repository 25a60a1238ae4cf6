"""The steps of `uhr train lora`, each an existing command, and what a step leaves to the next one."""

from __future__ import annotations

from collections.abc import Sequence

from uhr.base.config import change
from uhr.base.console import Main, note, run_command, shown, warn
from uhr.base.errors import UserError
from uhr.base.formatting import gibibytes
from uhr.lora import choices
from uhr.lora.captions import validation_prompts
from uhr.lora.record import ENCODED, RECIPE, RUN, SET, LoraFolder, LoraRecord
from uhr.train.encode.config import EncodeConfig

Command = tuple[str, ...]


def _texts(*parts: object) -> Command:
    return tuple(str(part) for part in parts)


def _sets(changes: Sequence[str]) -> list[str]:
    return [part for each in changes for part in ("--set", each)]


def curate(folder: LoraFolder, record: LoraRecord) -> Command:
    source = ("--source", record.request.images)
    return _texts("curate", "run", "as-is", *source, "--out", folder / SET, "--engine", "local")


def encode(folder: LoraFolder, record: LoraRecord) -> Command:
    request = record.request
    changes = [] if request.resolution is None else [f"resolution={request.resolution}"]
    texts = {"trigger": request.trigger, "missing": record.missing}
    changes += [change(name, text) for name, text in texts.items() if text is not None]
    options = (*request.named.options(), "--out", folder / ENCODED)
    device = ("--device", "cpu") if record.gpu is None else ()
    return _texts("train", "encode", folder / SET, *options, *_sets(changes), *device)


def check(folder: LoraFolder, record: LoraRecord) -> Command:
    on = () if record.gpu is None else ("--on", record.gpu)
    model, data = record.request.named.options(), ("--data", folder / ENCODED)
    return _texts("train", "plan", "--config", folder / RECIPE, *model, *data, *on)


def train(folder: LoraFolder, record: LoraRecord) -> Command:
    model, data = record.request.named.options(), ("--data", folder / ENCODED)
    config = ("--config", folder / RECIPE)
    return _texts("train", "run", *config, *model, *data, "--out", folder / RUN)


def resume(folder: LoraFolder) -> Command:
    return _texts("train", "resume", folder / RUN)


def export(folder: LoraFolder, record: LoraRecord) -> Command:
    name = ("--to", "diffusers", "--name", record.request.name)
    return _texts("train", "export", folder / RUN, *name, "--out", folder.path)


def commands(folder: LoraFolder, record: LoraRecord) -> list[Command]:
    """The commands in their order."""
    return [make(folder, record) for make in (curate, encode, check, train, export)]


def run(main: Main, folder: LoraFolder, record: LoraRecord, as_json: bool) -> None:
    """Run the steps that are left. Each of them resumes what it finds half done.

    Raises SystemExit with the code of a command that fails, which has said why.
    """
    from uhr.train.encode.stored.encoded import FILE, UNITS

    if not (folder / ENCODED / FILE).is_file() or (folder / ENCODED / UNITS).exists():
        _call(main, curate(folder, record), as_json)
        _call(main, encode(folder, record), as_json)
    if not (folder / RECIPE).is_file():
        _write_recipe(folder, record)
    _check_fit(folder, record)
    _call(main, _training(folder, record), as_json)
    if not folder.file.is_file():
        _call(main, export(folder, record), as_json)
    else:
        _check_exported(folder)


def _training(folder: LoraFolder, record: LoraRecord) -> Command:
    """The command that trains, or that resumes a run whose values the user has changed, which count."""
    from uhr.train.recipes import resolve
    from uhr.train.run.job import kept_values

    own = kept_values(folder / RUN, resolve(None, folder / RECIPE))
    if not own:
        return train(folder, record)
    note(f"{shown(folder / RUN)} was resumed with other values than {RECIPE} has: {', '.join(own)}")
    return resume(folder)


def _check_exported(folder: LoraFolder) -> None:
    """Warn if the file is not of the run's last step."""
    from uhr.models.files.run_steps import all_steps
    from uhr.models.publish.lora_file import step_of

    exported, last = step_of(folder.file), all_steps(folder / RUN)[-1]
    if exported != last:
        what = f"{shown(folder.file)} is of step {exported}, and the run is at step {last}"
        warn(f"{what}: remove it to have it exported again")


def _call(main: Main, arguments: Command, as_json: bool) -> None:
    run_command(main, arguments, as_json, "the same `uhr train lora` resumes")


def _check_fit(folder: LoraFolder, record: LoraRecord) -> None:
    """Raise UserError if the training of what was encoded does not fit the GPU."""
    from uhr.train.recipes import resolve
    from uhr.train.run.estimate.estimate import estimate
    from uhr.train.run.estimate.fitting import advice

    if record.gpu is None:
        return
    recipe = resolve(None, folder / RECIPE)
    found = estimate(recipe, record.request.named, [folder / ENCODED], record.gpu)
    if not found["gpu"]["fits"]:
        what = f"training needs {gibibytes(found['memory']['total'])}, and {found['gpu']['title']} has"
        fix = "; ".join([*advice(found), f"change {folder / RECIPE}, and give the same command again"])
        raise UserError(f"{what} {gibibytes(found['gpu']['usable'])}", fix)


def _write_recipe(folder: LoraFolder, record: LoraRecord) -> None:
    """Write the recipe for the images that were encoded."""
    from uhr.manifests.manifest import Manifest
    from uhr.models.specs.registry import get
    from uhr.train.encode.stored.encoded import read_encoded

    info = read_encoded(folder / ENCODED)
    rows = Manifest.open(folder / ENCODED).table(["uri", "caption"], where="status = 'kept'").sort_by("uri")
    config = EncodeConfig(trigger=record.request.trigger, missing=record.missing)
    texts = [config.captions_of([caption])[0] or "" for caption in rows["caption"].to_pylist()]
    prompts = validation_prompts(texts, record.request.trigger)
    spec = get(info.model.spec)
    changed = choices.changes(
        spec, len(texts), info.resolution, prompts, record.settings, record.request.sets
    )
    choices.write_recipe(folder / RECIPE, spec, shown(record.request.name), changed)
