"""The record of a generated image: everything needed to generate it again, written into its PNG."""

from __future__ import annotations

import functools
import io
import json
import math
import platform
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from uhr import __version__
from uhr.base.console import counted, shown
from uhr.base.errors import UserError, one_line
from uhr.base.files import atomic, saving, user_path, write_json
from uhr.base.store import FolderStore, StoreError
from uhr.models.generate.input_images import CHUNK, STAGE
from uhr.models.generate.setup import CheckedCall, Setup
from uhr.models.samplers.core import guidance as guidance_text
from uhr.models.samplers.core.run_record import RunRecord

SEARCHED = 1 << 26
"""Up to this many px an image is decoded to find a record after its pixels, where some editors put it."""

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


def check_out(out: Path, given: Path | None = None) -> None:
    """Raise UserError unless `out` is a PNG's name that can be written, is not the `given` image, and has no
    foreign JSON file next to it."""
    check_name(str(out))
    if out.is_dir():
        raise UserError(f"--out {out} is a folder", "name a file in it")
    if _is_same(out, given):
        raise UserError(f"--out {out} is the given image itself", "name another file")
    FolderStore(str(out.parent)).probe()
    file = json_path(out)
    if file.exists() and _read_json(file) is None:
        raise _foreign(str(file), out.name)


def check_name(out: str) -> None:
    """Raise UserError unless `out` ends in .png."""
    if PurePath(out).suffix.lower() != ".png":
        raise UserError(f"--out {out} is not a PNG", "name a file that ends in .png")


def check_json(place: str, name: str, data: bytes | None) -> None:
    """Raise UserError if the JSON file at `place`, whose content is `data`, is not the record of an image."""
    if data is not None and _parsed(data.decode("utf-8", "replace")) is None:
        raise _foreign(place, name)


def _foreign(place: str, name: str) -> UserError:
    what = f"{place} was not written by uhr, and the record of {name} would replace it"
    return UserError(what, "rename one of them")


def _is_same(file: Path, given: Path | None) -> bool:
    """Whether both exist and are the same file; `given` is as the user wrote it."""
    if given is None or not file.exists() or not user_path(given).exists():
        return False
    return file.samefile(user_path(given))


def write(path: Path, image: Any, record: dict[str, Any]) -> None:
    """Write a PIL image as PNG with the record in its `uhr` text chunk, and the record as JSON next to it.

    Each file is written atomically, and the JSON comes last: if it exists, so does its image.
    """
    data = png_bytes(image, record)
    with saving(path, _FIX, StoreError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # the record of an earlier image must not be left next to this one
        json_path(path).unlink(missing_ok=True)
        with atomic(path) as temporary:
            temporary.write_bytes(data)
        write_json(json_path(path), record)


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


def png_bytes(image: Any, record: dict[str, Any]) -> bytes:
    """Return a PIL image as PNG bytes with the record in its `uhr` text chunk."""
    from PIL.PngImagePlugin import PngInfo

    info, file = PngInfo(), io.BytesIO()
    info.add_text(CHUNK, json.dumps(record, sort_keys=True, allow_nan=False))
    image.save(file, format="PNG", pnginfo=info)
    return file.getvalue()


def read_record(path: Path) -> dict[str, Any]:
    """Read the record of an image that `uhr sample` wrote.

    It is in the PNG, or in the JSON next to it if an editor dropped it from the PNG. `path` may be the JSON
    itself. Raises UserError for any other file.
    """
    if path.suffix.lower() == ".json":
        record = _read_json(path)
    else:
        text = _read_chunk(path, CHUNK)
        record = (None if text is None else _parsed(text)) or _read_json(json_path(path))
    if record is None:
        raise UserError(f"{path} has no record of how it was made", "name a PNG that `uhr sample` wrote")
    return record


def open_png(path: Path) -> Any:
    """Open a PNG of any size with PIL, not decoded yet; callers that decode it check its size first.
    `Image.open` rejects images above 179 megapixels, such as 16K."""
    from PIL.PngImagePlugin import PngImageFile

    try:
        return PngImageFile(path)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)})", "name a PNG") from error


def _read_chunk(path: Path, name: str) -> str | None:
    with open_png(path) as image:
        found = image.info.get(name)
        if found is None and image.width * image.height <= SEARCHED:
            try:
                found = image.text.get(name)
            except (OSError, SyntaxError, ValueError) as error:
                raise UserError(f"{path} cannot be read ({one_line(error)})", "name a PNG") from error
    return found if isinstance(found, str) else None


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
