"""One call of a sampler from the command line: checked before anything is loaded, run, and written down."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uhr import __version__
from uhr.base.config import apply_sets, build
from uhr.base.console import progress
from uhr.base.errors import UserError, unknown
from uhr.base.files import atomic, sha256_file
from uhr.models.hub import lora_file
from uhr.models.loading import DTYPES, Model, hash_of, open_model
from uhr.models.offload import Offload, offload
from uhr.models.offload import check as check_offload
from uhr.models.quantize import check as check_quantize
from uhr.models.samplers import check_name, sampler_class

CHUNK = "uhr"
"""The PNG text chunk that holds the whole call, as JSON."""


@dataclass(frozen=True)
class Adapter:
    """An adapter's file and how strong it acts: 1 is as it was trained."""

    file: Path
    scale: float

    @classmethod
    def parse(cls, text: str) -> Adapter:
        """`PATH` or `PATH=0.8`."""
        path, equals, number = text.rpartition("=")
        if not equals or Path(text).exists():
            return cls(lora_file(text), 1.0)
        try:
            return cls(lora_file(path), float(number))
        except ValueError:
            raise UserError(f"adapter '{text}': '{number}' is no number", "write PATH or PATH=0.8") from None


@dataclass(frozen=True)
class Request:
    """What the user asked for. None is the sampler's default for the model (size, steps, guidance); dtype
    "auto" is bfloat16 on a GPU and float32 on the CPU."""

    sampler: str
    model: str
    prompt: str
    out: Path
    negative: str | None = None
    size: tuple[int, int] | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    adapters: tuple[str, ...] = ()
    dtype: str = "auto"
    device: str = "auto"
    offload: str | None = None
    quantize: str | None = None
    transformer: Path | None = None
    vae: Path | None = None
    sets: tuple[str, ...] = ()

    @property
    def weights(self) -> dict[str, Path]:
        """Components whose weights are elsewhere: a folder of their own, or a single file."""
        named = {"transformer": self.transformer, "vae": self.vae}
        return {name: path.expanduser() for name, path in named.items() if path is not None}


@dataclass(frozen=True)
class Call:
    """A request that can be carried out: every name resolved, nothing loaded."""

    request: Request
    model: Model
    height: int
    width: int
    steps: int
    guidance: float | None
    dtype: str
    device: str
    adapters: tuple[Adapter, ...]
    pipeline_class: Any
    options: Any


def check(request: Request) -> Call:
    """Resolve and check everything that needs no weights; UserError for what cannot be made."""
    check_name(request.sampler)
    if request.out.suffix.lower() != ".png":
        raise UserError(f"--out {request.out} is no PNG", "name a file that ends in .png")
    if request.dtype not in ("auto", *DTYPES):
        raise unknown("dtype", request.dtype, ("auto", *DTYPES), "--dtype")
    if request.steps is not None and request.steps < 1:
        raise UserError(f"--steps {request.steps}", "give at least 1")
    model = open_model(request.model)
    if request.guidance is not None and model.spec.guidance == "none":
        raise UserError(f"{model.spec.name} takes no guidance", "leave out --guidance")
    adapters = tuple(Adapter.parse(text) for text in request.adapters)

    for name, path in request.weights.items():
        if not path.exists():
            raise UserError(f"--{name} {path} is not there", "name a folder, or a .safetensors or .gguf file")

    from uhr.models.loading import pick_device

    place = pick_device(request.device)
    if request.offload is not None:
        check_offload(request.offload, place)
    if request.quantize is not None:
        check_quantize(request.quantize, place)
    device = str(place)
    dtype = request.dtype
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    pipeline_class = sampler_class(request.sampler, model.spec.family)
    options = build(pipeline_class.Options, apply_sets({}, list(request.sets)), f"sampler {request.sampler}")
    height, width = request.size[::-1] if request.size else pipeline_class.default_size(model.spec)
    guidance = request.guidance
    if guidance is None:
        guidance = pipeline_class.default_guidance(model.spec)
    steps = request.steps or pipeline_class.default_steps(model.spec)
    pipeline_class.preflight(model.spec, options, height, width, steps, request.negative is not None)
    if adapters:
        _check_adapters(model, adapters)
    return Call(
        request, model, height, width, steps, guidance, dtype, device, adapters, pipeline_class, options
    )


def _check_adapters(model: Model, adapters: tuple[Adapter, ...]) -> None:
    """Every adapter must fit the backbone's shape, known without its weights."""
    from uhr.models.adapters import read_lora
    from uhr.models.loading import empty_transformer

    transformer = empty_transformer(model)
    for adapter in adapters:
        read_lora(adapter.file, model.spec.family).check_fits(transformer)


def parse_size(text: str) -> tuple[int, int]:
    """`WxH` in px -> (width, height)."""
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdigit() and height.isdigit()):
        raise UserError(f"size '{text}'", "write it as WIDTHxHEIGHT, 1024x1024 say")
    return int(width), int(height)


def run(call: Call) -> dict[str, Any]:
    """Load, sample, write the PNG; the record that is in its `uhr` chunk."""
    import torch

    from uhr.models.adapters import activate, load_lora
    from uhr.models.loading import load_pipeline

    request = call.request
    pipeline = load_pipeline(
        call.model,
        call.dtype,
        "cpu" if request.offload and not request.quantize else call.device,
        call.pipeline_class,
        quantize=request.quantize,
        weights=request.weights,
    )
    pipeline.set_progress_bar_config(disable=True)
    for i, adapter in enumerate(call.adapters):
        load_lora(pipeline, adapter.file, f"adapter_{i}")
    if call.adapters:
        activate(pipeline, {f"adapter_{i}": adapter.scale for i, adapter in enumerate(call.adapters)})
    if request.offload is not None:
        # after the adapters: their weights are offloaded with the rest
        offload(pipeline, Offload(request.offload), torch.device(call.device))
    total = call.pipeline_class.all_steps(call.model.spec, call.options, call.height, call.width, call.steps)
    with progress("sample", total=total, unit="steps") as advance:

        def stepped(*_: Any) -> dict[str, Any]:
            advance()
            return {}

        picture = pipeline(
            prompt=request.prompt,
            negative_prompt=request.negative,
            height=call.height,
            width=call.width,
            num_inference_steps=call.steps,
            guidance_scale=call.guidance,
            # the CPU's generator: the same noise on every device
            generator=torch.Generator("cpu").manual_seed(request.seed),
            callback_on_step_end=stepped,
            **call.options.model_dump(),
        ).images[0]
    record = _record(call, pipeline)
    write_png(request.out, picture, record)
    return record


def _record(call: Call, pipeline: Any) -> dict[str, Any]:
    """The whole call: enough to make the picture again."""
    from importlib.metadata import version

    request, model = call.request, call.model
    return {
        "uhr": __version__,
        "sampler": request.sampler,
        "options": call.options.model_dump(mode="json"),
        "model": {"name": model.source.text, "spec": model.spec.name, "revision": model.revision},
        "weights": {
            name: {"path": str(path), "sha256": hash_of(path)} for name, path in request.weights.items()
        },
        "quantize": request.quantize,
        "offload": request.offload,
        "adapters": [
            {"file": str(a.file), "scale": a.scale, "sha256": sha256_file(a.file)} for a in call.adapters
        ],
        "prompt": request.prompt,
        "negative": request.negative,
        "width": call.width,
        "height": call.height,
        "steps": call.steps,
        "guidance": call.guidance,
        "seed": request.seed,
        "dtype": call.dtype,
        "device": call.device,
        "sigmas": list(pipeline.sigmas),
        "model_calls": pipeline.model_calls,
        "details": pipeline.details(),
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "peft")},
    }


def write_png(path: Path, picture: Any, record: dict[str, Any]) -> None:
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
