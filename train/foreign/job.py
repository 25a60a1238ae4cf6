"""Read a configuration of any known trainer, and write the pipeline and the recipe that it becomes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uhr.base.console import command, say, shown
from uhr.base.errors import UserError, one_line
from uhr.base.files import atomic, saving
from uhr.base.run_folder import all_or_nothing
from uhr.train.foreign import ai_toolkit, kohya, simpletuner
from uhr.train.foreign.settings import PIPELINE, RECIPE, Foreign, as_yaml
from uhr.train.recipes import resolve


@dataclass(frozen=True)
class Imported:
    """What was read, and the two files; `recipe` is the one that is changed."""

    foreign: Foreign
    out: Path
    recipe: str

    def commands(self) -> list[str]:
        """The commands that train with it, in their order."""
        found, out = self.foreign, self.out
        model = found.model or "MODEL"
        lines = [command("curate", "run", out / PIPELINE, "--out", out / "set")]
        word = ["--set", f"trigger={found.trigger}"] if found.trigger else []
        sides = found.resolutions
        data: list[Any] = []
        for side in sides:
            encoded = out / f"encoded-{side}"
            sets = ["--set", f"resolution={side}", *word]
            lines.append(command("train", "encode", out / "set", "--model", model, "--out", encoded, *sets))
            data += ["--data", f"main={encoded}"]
        if len(sides) == 1:
            data += ["--set", f"phases.main.resolution={sides[0]}"]
        run = ("--config", out / RECIPE, "--model", model, *data, "--out", out / "run")
        return [*lines, command("train", "run", *run)]

    def describe(self) -> dict[str, Any]:
        """Return it as JSON."""
        found = self.foreign
        return {
            "program": found.program,
            "sources": [vars(each) for each in found.sources],
            "trigger": found.trigger,
            "resolutions": found.resolutions,
            "model": found.model,
            "recipe": self.recipe,
            "values": found.recipe,
            "not_taken_over": found.unread,
            "files": [str(self.out / PIPELINE), str(self.out / RECIPE)],
            "commands": self.commands(),
        }


def read(place: Path) -> Foreign:
    """Read a configuration: a folder or TOML of kohya, a YAML of ai-toolkit, a JSON of SimpleTuner.

    Raises UserError for anything else, for values that are invalid, and for folders that do not exist.
    """
    if not place.exists():
        raise UserError(f"{place} does not exist", "name a configuration file, or kohya's train_data_dir")
    if place.is_dir():
        found = kohya.read_folder(place)
        if found is None:
            what = f"{place} has no subfolder named like kohya's 10_name"
            raise UserError(what, "an ordinary folder needs no import: uhr curate run as-is reads it")
        return found
    readers = {".toml": kohya.read_toml, ".yaml": ai_toolkit.read, ".yml": ai_toolkit.read}
    readers[".json"] = simpletuner.read
    reader = readers.get(place.suffix.lower())
    if reader is None:
        known = "kohya's .toml, ai-toolkit's .yaml and SimpleTuner's multidatabackend.json"
        raise UserError(f"{place} is not a configuration that is read", f"known: {known}")
    try:
        return reader(place)
    except (ValueError, TypeError) as error:
        raise UserError(f"{place} has a value that is invalid ({one_line(error)})", "correct it") from error


def import_config(place: Path, out: Path, recipe: str = "lora") -> Imported:
    """Write the pipeline and the recipe of a configuration into the folder `out`.

    Raises UserError as `read` does, if the recipe does not take a value, and if one of the files exists.
    """
    found = read(place)
    if not found.sources:
        raise UserError(f"{place} names no folder of images", "add its data")
    for name in (PIPELINE, RECIPE):
        if (out / name).exists():
            raise UserError(f"{out / name} already exists", "name another --out")
    head = [
        f"from {found.program}: {shown(place.name)}",
        *(f"not taken over: {shown(line)}" for line in found.unread),
    ]
    texts = {
        RECIPE: as_yaml(found.differences(recipe), head),
        PIPELINE: as_yaml(found.pipeline(place.stem or "images"), head[:1]),
    }
    with saving(out, "free space, or name another folder"), all_or_nothing(out):
        out.mkdir(parents=True, exist_ok=True)
        with atomic(out / RECIPE) as temporary:
            temporary.write_text(texts[RECIPE], encoding="utf-8")
            _check(temporary, place)
        with atomic(out / PIPELINE) as temporary:
            temporary.write_text(texts[PIPELINE], encoding="utf-8")
    return Imported(found, out, recipe)


def _check(file: Path, place: Path) -> None:
    """Raise UserError if the recipe does not take a value of `file`, which was made of `place`."""
    try:
        resolve(None, file)
    except UserError as error:
        raise UserError(f"{place}: {error.what.removeprefix(f'{file}: ')}", error.fix, error.give) from error


def print_imported(done: Imported) -> None:
    """Print what was read, what was not, and the commands that follow."""
    found = done.foreign
    for each in found.sources:
        how = f"weight {each.weight:g}" if each.weight is not None else f"{each.repeats} times an epoch"
        caption = f", caption '{shown(each.caption)}' where there is none" if each.caption else ""
        say(f"{each.name}: {shown(each.path)}, {how}{caption}")
    for path, value in found.recipe.items():
        say(f"{path}: {shown(value)}")
    for line in found.unread:
        say(f"not taken over: {shown(line)}")
    say(f"{shown(done.out / PIPELINE)} and {shown(done.out / RECIPE)} are written")
    if len(found.resolutions) > 1:
        sides = ", ".join(map(str, found.resolutions))
        say(f"trained at several resolutions ({sides} px), for which the images are encoded once each")
    say()
    for line in done.commands():
        say(f"next: {line}")
