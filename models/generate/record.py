"""The record of a generated image: everything needed to generate it again, written into its file."""

from __future__ import annotations

import functools
import json
import math
import platform
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from uhr import __version__
from uhr.base.console import counted, shown
from uhr.base.errors import UserError, one_line, unknown
from uhr.base.files import atomic, saving, user_path, write_json
from uhr.base.store import FolderStore, StoreError
from uhr.models.generate.encoding import SUFFIXES, Encoding, texts_of
from uhr.models.generate.input_images import CHUNK, STAGE
from uhr.models.generate.setup import CheckedCall, Setup
from uhr.models.samplers.core import guidance as guidance_text
from uhr.models.samplers.core.run_record import RunRecord

PACKAGES = ("torch", "diffusers", "transformers", "peft")
"""The packages whose versions a record contains."""


def record_of(setup: Setup, call: CheckedCall, run: RunRecord, seams: float | None = None) -> dict[str, Any]:
    """Return the record of a call that a pipeline has just run, as JSON. `seams` is the strength of the seams
    between its patches (`seams.seam_strength`)."""
    request, model, item = setup.request, setup.model, call.item
    return {
        "uhr": __version__,
        "sampler": request.sampler,
        "options": setup.choice.options.model_dump(mode="json"),
        "model": {
            "name": request.model,
            "base": request.base,
            "spec": model.spec.name,
            "revision": model.revision,
        },
        "weights": setup.weights,
        "quantize": request.quantize,
        "offload": request.offload,
        "adapters": setup.adapters,
        "image": _image(call),
        "prompt": item.prompt,
        "original": None if item.original is None else item.original.model_dump(),
        "negative": item.negative,
        "width": call.width,
        "height": call.height,
        "steps": call.steps,
        "guidance": call.guidance,
        "seed": item.seed,
        "dtype": setup.dtype,
        "device": setup.device,
        "sigmas": list(run.sigmas),
        "model_calls": run.model_calls,
        "details": _details(setup, call, run.details(), seams),
        "versions": versions(),
        "machine": machine(setup.device),
        "request": request.model_dump(mode="json"),
        # a name is no part of how it was made
        "item": item.model_dump(mode="json", exclude={"name"}),
        # under the names that curation looks for in the JSON beside an image
        "caption": item.prompt,
        "license": model.spec.licence.name,
    }


def _image(call: CheckedCall) -> dict[str, Any] | None:
    """The input image: the file that was opened, and how it was fitted to a size that can be generated."""
    path, given = call.item.image, call.given
    if path is None or given is None or call.fit is None:
        return None
    return {"path": str(path), "sha256": given.sha256, **call.fit.describe()}


def _details(setup: Setup, call: CheckedCall, run: dict[str, Any], seams: float | None) -> dict[str, Any]:
    if seams is not None and math.isfinite(seams):
        run = {**run, "seams": round(seams, 4)}
    notes = [*setup.notes, *(() if call.given is None else call.given.notes)]
    return {**run, "notes": [*run.get("notes", ()), *notes]} if notes else run


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages on which pixels depend."""
    return {"python": platform.python_version(), **_installed()}


@functools.cache
def _installed() -> dict[str, str]:
    """The version of each of `PACKAGES`. Each is read from a file, so once for a set of images."""
    from importlib.metadata import version

    return {name: version(name) for name in PACKAGES}


def machine(device: str) -> dict[str, Any]:
    """Return the properties of this machine on which the last bit of a pixel depends: the processor, and on a
    CPU the number of threads that share a sum."""
    import torch

    if torch.device(device).type == "cuda":
        return {"computes": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    computes = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {"computes": computes, "threads": torch.get_num_threads()}


def json_path(path: Path) -> Path:
    """Return the path of a PNG's JSON file."""
    return path.with_suffix(".json")


class RecordPlace(StrEnum):
    """Where a record is written: into the image's file, as JSON next to it, both, or nowhere."""

    BOTH = "both"
    IMAGE = "image"
    JSON = "json"
    NONE = "none"

    @classmethod
    def named(cls, name: str) -> RecordPlace:
        """Return the place of that name; `png` is the image's file too. Raises UserError if there is none."""
        if name == "png":
            return cls.IMAGE
        if name not in list(cls):
            raise unknown("place of a record", name, list(cls), "--record")
        return cls(name)

    @property
    def in_image(self) -> bool:
        return self in (RecordPlace.BOTH, RecordPlace.IMAGE)

    @property
    def beside(self) -> bool:
        return self in (RecordPlace.BOTH, RecordPlace.JSON)


def check_out(out: Path, given: Path | None = None, place: RecordPlace = RecordPlace.BOTH) -> None:
    """Raise UserError unless `out` is an image's name that can be written, is not the `given` image, and no
    JSON file next to it would be replaced that is foreign or of another image."""
    Encoding.of(str(out))
    if out.is_dir():
        raise UserError(f"--out {out} is a folder", "name a file in it")
    if _is_same(out, given):
        raise UserError(f"--out {out} is the given image itself", "name another file")
    FolderStore(str(out.parent)).probe()
    file = json_path(out)
    if place.beside and file.exists():
        if _read_json(file) is None:
            raise _foreign(str(file), out.name)
        others = _of_same_stem(out)
        if others and not out.exists():
            what = f"{file} is the record of {others[0].name}, and that of {out.name} would replace it"
            raise UserError(what, "name another file, or give --record image")


def _of_same_stem(path: Path) -> list[Path]:
    """Other images with the same name except for the suffix."""
    found = (path.with_suffix(suffix) for suffix in SUFFIXES)
    return [other for other in found if other.name != path.name and other.exists()]


def check_json(place: str, name: str, data: bytes | None) -> None:
    """Raise UserError if the JSON file at `place`, whose content is `data`, is not the record of an image."""
    if data is not None and not is_record(data):
        raise _foreign(place, name)


def is_record(data: bytes) -> bool:
    """Whether these are the bytes of a record's JSON file."""
    return _parsed(data.decode("utf-8", "replace")) is not None


def _foreign(place: str, name: str) -> UserError:
    what = f"{place} was not written by uhr, and the record of {name} would replace it"
    return UserError(what, "rename one of them")


def _is_same(file: Path, given: Path | None) -> bool:
    """Whether both exist and are the same file; `given` is as the user wrote it."""
    if given is None or not file.exists() or not user_path(given).exists():
        return False
    return file.samefile(user_path(given))


def write(
    path: Path,
    image: Any,
    record: dict[str, Any],
    encoding: Encoding | None = None,
    place: RecordPlace = RecordPlace.BOTH,
) -> None:
    """Write a PIL image (as PNG without `encoding`) with its record where `place` says.

    Each file is written atomically, and the JSON comes last: if it exists, so does its image.
    """
    data = image_bytes(image, record, encoding, place)
    file = json_path(path)
    with saving(path, _FIX, StoreError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # the record of an earlier image must not be left next to this one
        if place.beside or (not _of_same_stem(path) and file.is_file() and _read_json(file) is not None):
            file.unlink(missing_ok=True)
        with atomic(path) as temporary:
            temporary.write_bytes(data)
        if place.beside:
            write_json(file, record)


_FIX = "free space there, or name another place"


def stage_files(folder: Path, stem: str, names: Sequence[str]) -> list[Path]:
    """Return the files for previews of stages: `STEM-1-base.png` and so on."""
    return [folder / f"{stem}-{number}-{name}.png" for number, name in enumerate(names, 1)]


def check_stages(files: Sequence[Path], given: Path | None = None) -> None:
    """Raise UserError for a file that exists and is not an earlier preview, or that is the `given` image."""
    for file in files:
        if file.exists() and (_is_same(file, given) or _read_chunk(file, STAGE) is None):
            what = f"{file} already exists, and a preview would replace it"
            raise UserError(what, "name another --previews DIR")


def write_stages(folder: Path, stem: str, stages: Sequence[tuple[str, Any]]) -> None:
    """Write previews of stages: (name, PIL image) pairs, each marked by the `STAGE` chunk."""
    from PIL.PngImagePlugin import PngInfo

    for file, (name, image) in zip(stage_files(folder, stem, [n for n, _ in stages]), stages, strict=True):
        info = PngInfo()
        info.add_text(STAGE, name)
        with saving(file, _FIX, StoreError), atomic(file) as temporary:
            image.save(temporary, format="PNG", pnginfo=info)


def image_bytes(
    image: Any,
    record: dict[str, Any],
    encoding: Encoding | None = None,
    place: RecordPlace = RecordPlace.BOTH,
) -> bytes:
    """Return the bytes of a PIL image's file, with the record in it if `place` says so.

    A record that is too long for the file (64 KB for a JPEG) is left out of it.
    """
    encoding = encoding or Encoding()
    text = json.dumps(record, sort_keys=True, allow_nan=False)
    return encoding.encode(image, text if place.in_image and encoding.fits(text) else None)


def read_record(path: Path) -> dict[str, Any]:
    """Read the record of an image that `uhr sample` wrote.

    It is in the image, or in the JSON next to it if an editor dropped it from there. `path` may be the JSON
    itself. Raises UserError for any other file.
    """
    if path.suffix.lower() == ".json":
        record = _read_json(path)
    else:
        text = _read_chunk(path, CHUNK)
        record = (None if text is None else _parsed(text)) or _read_json(json_path(path))
    if record is None:
        raise UserError(f"{path} has no record of how it was made", "name an image that `uhr sample` wrote")
    return record


def _read_chunk(path: Path, name: str) -> str | None:
    return next(iter(texts_of(path, (name,)).values()), None)


def _read_json(file: Path) -> dict[str, Any] | None:
    """A file's record; None if the file does not exist or contains something else."""
    try:
        return _parsed(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file} cannot be read ({one_line(error)})", "name a PNG that `uhr sample` wrote"
        ) from error


def _parsed(text: str) -> dict[str, Any] | None:
    """The record that a text contains; None if it is anything else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and {"uhr", "sampler", "model"} <= found.keys() else None


_NAMED = {"transformer": "transformer", "vae": "VAE"}
"""Components whose weights may be named apart from the model."""


def describe(path: Path | str, record: dict[str, Any]) -> str:
    """Describe a generated image in one line, including every value that was filled in, and its notes."""
    guidance = guidance_text.describe([stage["guidance"] for stage in record["details"]["stages"]])
    adapters = "".join(f", {shown(a['file'])} at {a['scale']:g}" for a in record["adapters"])
    weights = "".join(
        f", {label} {shown(file)}"
        for name, label in _NAMED.items()
        if (file := record["weights"][name]["path"]) is not None
    )
    image = "" if record["image"] is None else f" from {shown(record['image']['path'])}"
    notes = "".join(f"\nnote: {shown(note)}" for note in record["details"].get("notes", ()))
    steps, calls = counted(record["steps"], "step"), counted(record["model_calls"], "call")
    return (
        f"{shown(path)}: {record['width']}x{record['height']}{image}, {record['sampler']} on "
        f"{record['model']['spec']}{weights}{adapters}, {steps}, {guidance}, seed {record['seed']}, "
        f"{record['dtype']} on {record['device']}, {calls} of the backbone{notes}"
    )
