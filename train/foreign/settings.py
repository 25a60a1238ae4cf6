"""What a configuration of another trainer says, in our terms, and the two files that it becomes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from uhr.base.errors import UserError, one_line

Value = Callable[[Any], Any]

PIPELINE, RECIPE = "pipeline.yaml", "recipe.yaml"


@dataclass(frozen=True)
class Key:
    """One setting of another trainer. `ours` is the path of a recipe's value, or a sentence on where it is;
    `value` converts it; `reason` says why it has no counterpart."""

    ours: str | None = None
    value: Value | None = None
    reason: str | None = None


class UnsupportedValue(ValueError):
    """A value that is valid there and has no counterpart here: the recipe's own stays, and it is reported."""


def absent(reason: str) -> Key:
    """A setting that has no counterpart here."""
    return Key(reason=reason)


CACHED = absent("latents and texts are always encoded once, to disk")
NOT_AUGMENTED = absent("images are encoded once: there is no augmentation")


@dataclass(frozen=True)
class ForeignSource:
    """A folder of images. `caption` is that of images without one of their own, `repeats` how often each is
    used in an epoch, `weight` its share of the batches instead. `resolutions`, px: it is trained on at each.
    """

    name: str
    path: str
    caption: str | None = None
    repeats: int = 1
    weight: float | None = None
    resolutions: tuple[int, ...] = ()


@dataclass
class Foreign:
    """A configuration in our terms. `recipe` has values by path, `unread` what was not taken over and why.
    `resolution`, px, is that of sources that have none of their own."""

    program: str
    sources: list[ForeignSource] = field(default_factory=list)
    trigger: str | None = None
    resolution: int = 1024
    model: str | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)

    def take(self, tree: Mapping[str, Any], keys: Mapping[str, Key], where: str = "") -> None:
        """Take over the values of `tree` that `keys` knows; a name may be dotted. Others go to `unread`."""
        for name, value in flat(tree).items():
            key = keys.get(name)
            if key is None:
                self.unread.append(f"{where}{name}: not known here")
            elif key.reason is not None:
                if value not in (None, False, 0, [], {}, ""):
                    self.unread.append(f"{where}{name}: {key.reason}")
            elif key.value is not None:
                assert key.ours is not None
                try:
                    self.recipe[key.ours] = key.value(value)
                except UnsupportedValue as error:
                    self.unread.append(f"{where}{name}: {value} ({one_line(error)})")
                except (ValueError, TypeError, KeyError) as error:
                    what = f"{self.program}: {where}{name} is {value!r} ({one_line(error)})"
                    raise UserError(what, "correct it, or leave it out") from error

    def add(self, name: str, path: Any, base: Path, **values: Any) -> None:
        """Add a folder under a name of its own; a relative path is one below `base`."""
        if not isinstance(path, str) or not path:
            raise UserError(f"{self.program}: data set '{name}' has no folder", "add its path")
        clean = re.sub(r"[^\w.-]+", "_", name).strip("_") or "images"
        taken, number, unique = {each.name for each in self.sources}, 2, clean
        while unique in taken:
            unique, number = f"{clean}-{number}", number + 1
        place = Path(path).expanduser()
        full = (place if place.is_absolute() else base / place).absolute()
        if not full.is_dir():
            raise UserError(
                f"{self.program}: the folder {full} of '{name}' does not exist", "correct its path"
            )
        self.sources.append(ForeignSource(unique, str(full), **values))

    def resolutions_of(self, source: ForeignSource) -> tuple[int, ...]:
        """The resolutions that a source is trained on at, px."""
        return source.resolutions or (self.resolution,)

    @property
    def resolutions(self) -> list[int]:
        """The resolutions of all sources, px."""
        return list(dict.fromkeys(side for each in self.sources for side in self.resolutions_of(each)))

    def pipeline(self, name: str) -> dict[str, Any]:
        """The pipeline of curation with these sources."""
        sources = {}
        for each in self.sources:
            sources[each.name] = {"kind": "folder", "path": each.path}
            if each.caption is not None:
                sources[each.name]["caption"] = each.caption
        return {"preset": "as-is", "name": name, "sources": sources}

    def differences(self, recipe: str) -> dict[str, Any]:
        """The changes to a recipe, as a file for `--config`."""
        tree: dict[str, Any] = {"recipe": recipe}
        data = []
        several = len(self.resolutions) > 1
        for each, side in [(source, side) for source in self.sources for side in self.resolutions_of(source)]:
            use: dict[str, Any] = {"data": "main", "where": f"source_name = '{each.name}'"}
            if each.weight is not None:
                use["weight"] = each.weight
            elif each.repeats != 1:
                use["repeats"] = each.repeats
            if several:
                use["resolution"] = side
            data.append(use)
        values = dict(self.recipe)
        if any(len(use) > 2 for use in data):
            values["phases.main.data"] = data
        for path, value in values.items():
            here = tree
            *parents, last = path.split(".")
            for part in parents:
                here = here.setdefault(part, {})
            here[last] = value
        return tree


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted names. Lists are values."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def as_yaml(tree: Mapping[str, Any], head: list[str]) -> str:
    """Return a tree as YAML below lines of comments."""
    comments = "".join(f"# {line}\n" for line in head)
    return comments + yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True, width=110)


def whole(value: Any) -> int:
    """A whole number above 0. Raises ValueError for anything else."""
    number = float(value)
    if isinstance(value, bool) or not math.isfinite(number) or number != int(number) or number < 1:
        raise ValueError("it must be a whole number above 0")
    return int(number)


def real(value: Any) -> float:
    """A finite number; kohya's files also have them as text."""
    number = float(value)
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError("it must be a number")
    return number


def steps(value: Any) -> int:
    """A number of steps, also 0. A number between 0 and 1 is a share of all steps in other trainers."""
    number = real(value)
    if number != int(number) or number < 0:
        raise UnsupportedValue("give a number of steps")
    return int(number)


def timesteps(density: str, shift: float = 1.0, std: float = 1.0) -> dict[str, Any]:
    """How sigma is drawn: the value of `phases.main.timesteps`, with mean 0."""
    return {"density": density, "mean": 0.0, "std": std, "shift": shift}


def truth(value: Any) -> bool:
    """True or false. Raises ValueError for anything else."""
    if value not in (True, False):
        raise ValueError("it must be true or false")
    return bool(value)


def one_of(**names: Any) -> Value:
    """A conversion of names; raises UnsupportedValue for another. Case does not count."""

    def value(text: Any) -> Any:
        found = str(text).lower().replace("-", "_")
        if found not in names:
            raise UnsupportedValue(f"known here: {', '.join(names)}")
        return names[found]

    return value


OPTIMISERS = {
    "adamw": "adamw",
    "adamw8bit": "adamw-8bit",
    "adamw_8bit": "adamw-8bit",
    "bnb_adamw8bit": "adamw-8bit",
    "prodigy": "prodigy",
}
"""Names of optimisers in other trainers, and ours."""

SCHEDULES = {
    "constant": "constant",
    "constant_with_warmup": "constant",
    "cosine": "cosine",
    "linear": "linear",
}
"""Names of schedules of the learning rate in other trainers, and ours."""
