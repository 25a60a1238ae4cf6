"""How an image was made, written into it: everything that is wanted to make it again."""

from __future__ import annotations

import io
import json
import math
import platform
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from uhr import __version__
from uhr.base.console import counted, shown
from uhr.base.errors import UserError
from uhr.base.files import atomic, saving, user_path, write_json
from uhr.base.store import FolderStore, StoreError
from uhr.models.generate.images import CHUNK, STAGE
from uhr.models.generate.setup import Call, Setup
from uhr.models.samplers.core import guidance as guidance_text
from uhr.models.samplers.core.run_record import RunRecord

SEARCHED = 1 << 26
"""px up to which an image is decoded to look for a record behind its pixels, where some editors put it."""

PACKAGES = ("torch", "diffusers", "transformers", "peft")
"""Whose versions stand in a record."""


def record_of(setup: Setup, call: Call, run: RunRecord, seams: float | None = None) -> dict[str, Any]:
    """The whole call that a pipeline has just made, as JSON: what was requested (`request`, `item`), and what
    was `run`; `seams` are those of its patches (`seams.seam_strength`)."""
    request, model, item = setup.request, setup.model, call.item
    return {
        "uhr": __version__,
        "sampler": request.sampler,
        "options": setup.method.options.model_dump(mode="json"),
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


def _image(call: Call) -> dict[str, Any] | None:
    """The given image: the file that was opened, and how it was brought to a size that can be made."""
    path, given = call.item.image, call.given
    if path is None or given is None or call.fit is None:
        return None
    return {"path": str(path), "sha256": given.sha256, **call.fit.describe()}


def _details(setup: Setup, call: Call, told: dict[str, Any], seams: float | None) -> dict[str, Any]:
    if seams is not None and math.isfinite(seams):
        told = {**told, "seams": round(seams, 4)}
    notes = [*setup.notes, *(() if call.given is None else call.given.notes)]
    return {**told, "notes": [*told.get("notes", ()), *notes]} if notes else told


def versions() -> dict[str, str]:
    """Of Python and of the packages that pixels come out of."""
    from importlib.metadata import version

    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def machine(device: str) -> dict[str, Any]:
    """What of a machine the last bit of a pixel depends on: what computes, and on the CPU how many threads
    share a sum."""
    import torch

    if torch.device(device).type == "cuda":
        return {"computes": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    computes = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {"computes": computes, "threads": torch.get_num_threads()}


def beside(path: Path) -> Path:
    """The JSON file of a PNG."""
    return path.with_suffix(".json")


def check_out(out: Path, given: Path | None = None) -> None:
    """UserError unless `out` is the name of a PNG that can be written, beside which no JSON stands that is
    not ours, and which is not the `given` image itself."""
    check_name(str(out))
    if out.is_dir():
        raise UserError(f"--out {out} is a folder", "name a file in it")
    if _is_same(out, given):
        raise UserError(f"--out {out} is the given image itself", "name another file")
    FolderStore(str(out.parent)).probe()
    file = beside(out)
    if file.exists() and _read_json(file) is None:
        raise _not_ours(str(file), out.name)


def check_name(out: str) -> None:
    """UserError unless it is a PNG's."""
    if PurePath(out).suffix.lower() != ".png":
        raise UserError(f"--out {out} is no PNG", "name a file that ends in .png")


def check_beside(place: str, name: str, data: bytes | None) -> None:
    """UserError where `data`, which stand at `place` beside the image of that name, are no record."""
    if data is not None and _parsed(data.decode("utf-8", "replace")) is None:
        raise _not_ours(place, name)


def _not_ours(place: str, name: str) -> UserError:
    return UserError(f"{place} is not ours, and the record of {name} goes there", "rename one of them")


def _is_same(file: Path, given: Path | None) -> bool:
    """Whether both are there and one file, `given` as a user wrote it."""
    if given is None or not file.exists() or not user_path(given).exists():
        return False
    return file.samefile(user_path(given))


def write(path: Path, image: Any, record: dict[str, Any]) -> None:
    """A PIL image as PNG with the record in its `uhr` text chunk, and the same beside it as JSON.

    Both are whole or absent, and the JSON comes last: where it stands, its image does.
    """
    data = png_bytes(image, record)
    with saving(path, _ROOM, StoreError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # that of an earlier image must not stand beside this one
        beside(path).unlink(missing_ok=True)
        with atomic(path) as temporary:
            temporary.write_bytes(data)
        write_json(beside(path), record)


_ROOM = "make room there, or name another place"


def stage_files(folder: Path, stem: str, names: Sequence[str]) -> list[Path]:
    """Where images of stages go: `STEM-1-base.png` and so on."""
    return [folder / f"{stem}-{number}-{name}.png" for number, name in enumerate(names, 1)]


def check_stages(files: Sequence[Path], given: Path | None = None) -> None:
    """UserError for a file that is there and no earlier image of a stage, or that is the `given` image:
    it would be written over."""
    for file in files:
        if file.exists() and (_is_same(file, given) or _read_chunk(file, STAGE) is None):
            raise UserError(f"{file} is there, and a preview would replace it", "name another --previews DIR")


def write_stages(folder: Path, stem: str, stages: Sequence[tuple[str, Any]]) -> None:
    """The images of stages (PIL) by their names, each marked as one."""
    from PIL.PngImagePlugin import PngInfo

    for file, (name, image) in zip(stage_files(folder, stem, [n for n, _ in stages]), stages, strict=True):
        info = PngInfo()
        info.add_text(STAGE, name)
        with saving(file, _ROOM, StoreError), atomic(file) as temporary:
            image.save(temporary, format="PNG", pnginfo=info)


def png_bytes(image: Any, record: dict[str, Any]) -> bytes:
    """A PIL image as PNG with the record in its `uhr` text chunk."""
    from PIL.PngImagePlugin import PngInfo

    info, file = PngInfo(), io.BytesIO()
    info.add_text(CHUNK, json.dumps(record, sort_keys=True, allow_nan=False))
    image.save(file, format="PNG", pnginfo=info)
    return file.getvalue()


def read_record(path: Path) -> dict[str, Any]:
    """The record of an image that `uhr sample` wrote: in the PNG, or in the JSON beside it where an editor
    has dropped it from the PNG. `path` may be the JSON itself. UserError for any other file."""
    if path.suffix.lower() == ".json":
        record = _read_json(path)
    else:
        text = _read_chunk(path, CHUNK)
        record = (None if text is None else _parsed(text)) or _read_json(beside(path))
    if record is None:
        raise UserError(f"{path} does not say how it was made", "name a PNG that `uhr sample` wrote")
    return record


def opened(path: Path) -> Any:
    """A PNG (PIL), not decoded yet, of any size: whoever decodes it must have seen that. `Image.open` refuses
    from 179 megapixels on, 16K say."""
    from PIL.PngImagePlugin import PngImageFile

    try:
        return PngImageFile(path)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error})", "name a PNG") from error


def _read_chunk(path: Path, name: str) -> str | None:
    with opened(path) as image:
        found = image.info.get(name)
        if found is None and image.width * image.height <= SEARCHED:
            try:
                found = image.text.get(name)
            except (OSError, SyntaxError, ValueError) as error:
                raise UserError(f"{path} cannot be read ({error})", "name a PNG") from error
    return found if isinstance(found, str) else None


def _read_json(file: Path) -> dict[str, Any] | None:
    """A file's record, or None for a file that is not there or not ours."""
    try:
        return _parsed(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read ({error})", "name a PNG that `uhr sample` wrote") from error


def _parsed(text: str) -> dict[str, Any] | None:
    """A record of ours, or None for whatever else a text is."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and {"uhr", "sampler", "model"} <= found.keys() else None


def describe(path: Path | str, record: dict[str, Any]) -> str:
    """What was made, for people: nothing that was filled in stays unsaid."""
    guidance = guidance_text.describe([stage["guidance"] for stage in record["details"]["stages"]])
    adapters = "".join(f", {shown(a['file'])} at {a['scale']:g}" for a in record["adapters"])
    image = "" if record["image"] is None else f" from {shown(record['image']['path'])}"
    notes = "".join(f"\nnote: {shown(note)}" for note in record["details"].get("notes", ()))
    steps, calls = counted(record["steps"], "step"), counted(record["model_calls"], "call")
    return (
        f"{shown(path)}: {record['width']}x{record['height']}{image}, {record['sampler']} on "
        f"{record['model']['spec']}{adapters}, {steps}, {guidance}, seed {record['seed']}, "
        f"{record['dtype']} on {record['device']}, {calls} of the backbone{notes}"
    )
