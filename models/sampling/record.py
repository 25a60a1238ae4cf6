"""How a picture was made, written into it: everything that is wanted to make it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from uhr import __version__
from uhr.base.errors import UserError
from uhr.base.files import atomic, sha256_file
from uhr.models.loading import hash_of
from uhr.models.sampling.setup import Call, Setup

CHUNK = "uhr"
"""The PNG text chunk that holds the record, as JSON."""

PACKAGES = ("torch", "diffusers", "transformers", "peft")
"""Whose versions stand in a record."""


def record_of(setup: Setup, call: Call, pipeline: Any) -> dict[str, Any]:
    """The whole call that a pipeline has just made, as JSON."""
    from importlib.metadata import version

    request, model, item = setup.request, setup.model, call.item
    return {
        "uhr": __version__,
        "sampler": request.sampler,
        "options": setup.method.options.model_dump(mode="json"),
        "model": {"name": model.source.text, "spec": model.spec.name, "revision": model.revision},
        "weights": {
            name: {"path": str(path), "sha256": hash_of(path)} for name, path in request.weights.items()
        },
        "quantize": request.quantize,
        "offload": request.offload,
        "adapters": [
            {"file": str(a.file), "scale": a.scale, "sha256": sha256_file(a.file)} for a in request.adapters
        ],
        "prompt": item.prompt,
        "negative": item.negative,
        "width": call.width,
        "height": call.height,
        "steps": call.steps,
        "guidance": call.guidance,
        "seed": item.seed,
        "dtype": setup.dtype,
        "device": setup.device,
        "sigmas": list(pipeline.sigmas),
        "model_calls": pipeline.model_calls,
        "details": pipeline.details(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def check_out(out: Path) -> None:
    """UserError unless `out` is the name of a PNG."""
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out} is no PNG", "name a file that ends in .png")


def write(path: Path, picture: Any, record: dict[str, Any]) -> None:
    """A PIL picture as PNG with the record in its `uhr` text chunk, atomically."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(CHUNK, json.dumps(record, sort_keys=True))
    with atomic(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=info)


def read_record(path: Path) -> dict[str, Any]:
    """The record of a PNG that `uhr sample` wrote; UserError for any other picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            text = getattr(picture, "text", {}).get(CHUNK)
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{path} cannot be read ({error})", "name a PNG") from error
    if text is None:
        raise UserError(f"{path} does not say how it was made", "name a PNG that `uhr sample` wrote")
    return json.loads(text)


def describe(path: Path, record: dict[str, Any]) -> str:
    """What was made, for people: nothing that was filled in stays unsaid."""
    guidance = "no guidance" if record["guidance"] is None else f"guidance {record['guidance']:g}"
    adapters = "".join(f", {a['file']} at {a['scale']:g}" for a in record["adapters"])
    notes = "".join(f"\nnote: {note}" for note in record["details"].get("notes", ()))
    return (
        f"{path}: {record['width']}x{record['height']}, {record['sampler']} on {record['model']['spec']}"
        f"{adapters}, {record['steps']} steps, {guidance}, seed {record['seed']}{notes}"
    )
