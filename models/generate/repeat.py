"""Generate an image again from its own record, and compare the two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

from pydantic import Field

from uhr.base.config import Config, build
from uhr.base.errors import UserError, one_line
from uhr.base.files import user_path
from uhr.models.generate import record as records
from uhr.models.generate.encoding import SUFFIXES, Encoding, open_written
from uhr.models.generate.record import json_path, machine, versions
from uhr.models.generate.request import Item, Request
from uhr.models.generate.setup import WEIGHTED, CheckedCall, Setup
from uhr.models.generate.target import Target
from uhr.models.loading.opening import is_backbone
from uhr.models.samplers import SAMPLERS, check_name

WHERE_MADE = "repeat it in the folder where it was made: the record has relative paths as they were given"


class RecordedOptions(Config):
    """The parts of a record that `differences` reads, validated because a record may have been edited."""

    weights: dict[str, dict[str, Any]] = Field(default_factory=dict)
    adapters: tuple[dict[str, Any], ...]
    image: dict[str, Any] | None = None
    versions: dict[str, Any] = Field(default_factory=dict)
    machine: dict[str, Any] = Field(default_factory=dict)


def recorded_request(
    record: Mapping[str, Any], where: str, model: str | None = None, sampler: str | None = None
) -> tuple[Request, Item]:
    """Return the request and item of a record, with every default filled in as it was then.

    A hub model is taken at the commit that was used, unless `model` names another place for it. Raises
    UserError for an incomplete record, and for a sampler from outside this package: a record may come from
    anybody, so foreign code runs only if the user names it as `sampler`.
    """
    try:
        request = build(Request, record["request"], where)
        item = build(Item, record["item"], where)
        known = {
            **_model(record["model"], model),
            "options": record["options"],
            "steps": record["steps"],
            "guidance": record["guidance"],
            "dtype": record["dtype"],
            "device": record["device"],
        }
        recorded = build(
            RecordedOptions,
            {name: record[name] for name in RecordedOptions.model_fields if name in record},
            where,
        )
        if len(recorded.adapters) != len(request.adapters):
            raise ValueError(f"{len(recorded.adapters)} adapters of {len(request.adapters)}")
    except (KeyError, TypeError, ValueError) as error:
        what = f"the record of {where} is incomplete or invalid ({type(error).__name__}: {error})"
        raise UserError(what, "it was edited, and cannot be repeated") from error
    check_name(request.sampler)
    if request.sampler not in (SAMPLERS if sampler is None else (sampler,)):
        what = f"the record of {where} names the sampler '{request.sampler}'"
        raise UserError(what, f"if you trust its code, name it: --sampler {quote(request.sampler)}")
    request = build(Request, {**request.model_dump(), **known}, where)
    if item.image is None:
        size = (record["width"], record["height"])
        item = build(Item, {**item.model_dump(), "size": size}, where)
    return request, item


def _model(then: Mapping[str, Any], now: str | None) -> dict[str, Any]:
    """The model and its base, those from the hub pinned to the recorded commit.

    `now` is where the model is today, or its base if the recorded model is a lone file and `now` is not.
    """
    name, base, revision = then["name"], then["base"], then["revision"]
    alone = now is not None and is_backbone(user_path(now))
    if alone and base is None:
        what = f"--model {now} is only a backbone, and the image was made with a whole model, {name}"
        raise UserError(what, "name that model's folder or hub id")
    if now is not None and (base is None or alone):
        return {"model": now, "base": base}
    if now is not None:
        return {"model": name, "base": now}
    for place in (base, name) if revision is None else (name,) if base else ():
        # a folder's name may look like a hub id, and the user did not request a download
        if place is not None and not user_path(place).exists():
            raise UserError(f"model {place} does not exist", "name where it is now: --model DIR")
    pinned = None if revision is None else "@".join(((base or name).partition("@")[0], revision))
    return {"model": name, "base": pinned or base} if base else {"model": pinned or name, "base": None}


def may_fetch(model: str | None) -> bool:
    """Whether a download from the hub is allowed: only for a whole `model` that the user names now. Otherwise
    only the hub's cache is read."""
    return model is not None and not is_backbone(user_path(model))


def original_image(file: Path) -> Path | None:
    """Return the image of a record: the file itself, or for a JSON the image next to it, None if there is
    none."""
    if file.suffix.lower() != ".json":
        return file
    return next((image for suffix in SUFFIXES if (image := file.with_suffix(suffix)).exists()), None)


def target_of(out: Path, record: Mapping[str, Any], where: str) -> tuple[Target, Encoding]:
    """Return where the repeated image is written, and how the recorded one was stored.

    A file of the same format has the recorded quality.
    """
    stored = build(Encoding, record.get("file") or {}, where)
    target = Target.of(str(out))
    if target.encoding.format == stored.format:
        target = replace(target, encoding=stored)
    return target, stored


def check_out(out: Path, image: Path, item: Item) -> None:
    """Raise UserError if writing `out` would replace the image that is repeated, its record, or its input
    image."""
    records.check_out(out, item.image)
    for old in (image, original_image(image), json_path(image)):
        for new in (out, json_path(out)):
            if old is not None and old.exists() and new.exists() and new.samefile(old):
                what = f"--out {out}: {new} is the image to repeat, or its record"
                raise UserError(what, "name another file")


def on_this_machine(request: Request) -> tuple[Request, list[str]]:
    """Return the request on a device that this machine has, and a line for each change."""
    from uhr.models.loading.model import pick_device

    try:
        pick_device(request.device)
    except UserError:
        place = pick_device("auto")
        lines = [f"device: made on {request.device}, which this machine lacks; now on {place}"]
        if request.offload is not None and place.type == "cpu":
            lines.append(f"offload: {request.offload} needs a GPU; now without")
        offload = None if place.type == "cpu" else request.offload
        return request.model_copy(update={"device": str(place), "offload": offload}), lines
    return request, []


def check_files(request: Request, item: Item) -> None:
    """Raise UserError for an adapter, weights file or input image that does not exist. The model is checked
    when it is opened."""
    named = {"adapter": [user_path(each.name) for each in request.adapters]}
    named |= {name: [path] for name, path in request.weights.items()}
    named["image"] = [] if item.image is None else [user_path(item.image)]
    for kind, paths in named.items():
        for path in paths:
            if not path.exists():
                raise UserError(f"{kind} {path} does not exist", WHERE_MADE)


def differences(record: Mapping[str, Any], setup: Setup, call: CheckedCall) -> list[str]:
    """Return a line for each difference to the recorded call: components' files, adapters, the input image,
    versions, the machine. A hub model must have been loaded before."""
    lines = []
    then = record.get("weights", {})
    for name, now in setup.weights.items():
        before = then.get(name, {})
        if before.get("sha256") != now["sha256"]:
            kind = "weights" if name in WEIGHTED else "files"
            lines.append(f"{kind}: those of the {name} differ from the recorded ones")
        if before.get("config") != now["config"]:
            lines.append(f"configuration: that of the {name} differs from the recorded one")
    for old, new in zip(record.get("adapters", ()), setup.adapters, strict=True):
        if old.get("sha256") != new["sha256"]:
            lines.append(f"adapter: {new['file']} is not the recorded file")
        if old.get("config") != new["config"]:
            lines.append(f"adapter: the settings next to {new['file']} differ from the recorded ones")
    lines += _given(record.get("image"), call)
    lines += _changed("version", {"uhr": record.get("uhr"), **record.get("versions", {})}, _versions_now())
    return lines + _changed("machine", record.get("machine", {}), machine(setup.device))


def _given(then: Mapping[str, Any] | None, call: CheckedCall) -> list[str]:
    if call.given is None or then is None or then.get("sha256") == call.given.sha256:
        return []
    return [f"image: {call.item.image} is not the recorded file"]


def _versions_now() -> dict[str, Any]:
    from uhr import __version__

    return {"uhr": __version__, **versions()}


def _changed(kind: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names = [*now, *(name for name in then if name not in now)]
    return [
        f"{kind}: {name} was {then.get(name)}, and is {now.get(name)}"
        for name in names
        if then.get(name) != now.get(name)
    ]


@dataclass(frozen=True)
class Comparison:
    """The difference of two images of `width` x `height` px: `differ` pixels differ in some value, by at most
    `most` of 255. `other` is the first image's size if it is not the same; then all pixels differ."""

    width: int
    height: int
    differ: int
    most: int
    other: tuple[int, int] | None = None

    @property
    def identical(self) -> bool:
        return self.differ == 0

    def describe(self) -> dict[str, Any]:
        """Return the comparison as JSON."""
        return {
            "identical": self.identical,
            "pixels_that_differ": self.differ,
            "largest_difference": self.most,
        }

    def __str__(self) -> str:
        total = self.width * self.height
        if self.identical:
            return f"identical: all {total:,} pixels"
        if self.other is not None:
            return f"not comparable: the first has {self.other[0]}x{self.other[1]} px"
        return f"not identical: {self.differ:,} of {total:,} pixels differ, by at most {self.most} of 255"


def compare(first: Path, again: Any, encoding: Encoding | None = None) -> Comparison:
    """Compare an image file with a PIL image value by value, transparency included, after both have been
    stored by `encoding`. A file of another size is not decoded."""
    import numpy as np

    width, height = again.size
    again = (encoding or Encoding()).stored(again)
    with open_written(first, (width, height)) as file:
        if file.size != again.size:
            return Comparison(width, height, width * height, 255, file.size)
        try:
            one, two = np.asarray(file.convert("RGBA")), np.asarray(again.convert("RGBA"))
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{first} is damaged and cannot be compared ({one_line(error)})", None) from error
    apart = (np.maximum(one, two) - np.minimum(one, two)).max(axis=-1)
    return Comparison(width, height, int((apart > 0).sum()), int(apart.max()))
