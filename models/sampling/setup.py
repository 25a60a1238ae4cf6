"""From a request to a setup in which every name is resolved, and from an item to a call that can be made.

Nothing here loads weights: what cannot be made is refused within a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from uhr.base.config import build
from uhr.base.errors import UserError, unknown
from uhr.models.hashes import file_hash, shown_hash
from uhr.models.loading import DTYPES, Model, open_model, pick_device
from uhr.models.offload import check as check_offload
from uhr.models.quantize import check as check_quantize
from uhr.models.samplers import check_name, sampler_class
from uhr.models.sampling.request import Adapter, Item, Request
from uhr.models.spec import ModelSpec

WEIGHTED = ("transformer", "vae", "text_encoder", "text_encoder_2")
"""Components that have weights of their own."""


@dataclass(frozen=True)
class Call:
    """One picture that can be made: its item, and every number that was left open filled in. Sizes in px."""

    item: Item
    height: int
    width: int
    steps: int
    guidance: float | None


@dataclass(frozen=True)
class Method:
    """A sampler with its options on a backbone: what is known without any file of a model."""

    request: Request
    spec: ModelSpec
    pipeline_class: Any
    options: Any
    steps: int
    guidance: float | None

    @classmethod
    def of(cls, request: Request, spec: ModelSpec) -> Method:
        """UserError for a sampler that the backbone's family has not, and for options that it does not
        take."""
        if request.steps is not None and request.steps < 1:
            raise UserError(f"--steps {request.steps}", "give at least 1")
        if request.guidance is not None and spec.guidance == "none":
            raise UserError(f"{spec.name} takes no guidance", "leave out --guidance")
        pipeline_class = sampler_class(request.sampler, spec.family)
        options = build(pipeline_class.Options, request.options, f"sampler {request.sampler}")
        guidance = request.guidance
        if guidance is None:
            guidance = pipeline_class.default_guidance(spec)
        steps = request.steps or pipeline_class.default_steps(spec)
        return cls(request, spec, pipeline_class, options, steps, guidance)

    def call(self, item: Item) -> Call:
        """UserError for a size that cannot be made, and for a negative prompt that would have no effect."""
        size = item.size or self.request.size
        height, width = size[::-1] if size else self.pipeline_class.default_size(self.spec)
        negative = item.negative is not None
        self.pipeline_class.preflight(self.spec, self.options, height, width, self.steps, negative)
        return Call(item, height, width, self.steps, self.guidance)


@dataclass(frozen=True)
class Setup:
    """A request of which every name is resolved, its files found, nothing loaded."""

    request: Request
    model: Model
    method: Method
    dtype: str
    device: str

    @classmethod
    def of(cls, request: Request) -> Setup:
        """UserError for whatever of a request cannot be, whichever picture it is for."""
        check_name(request.sampler)
        if request.dtype not in ("auto", *DTYPES):
            raise unknown("dtype", request.dtype, ("auto", *DTYPES), "--dtype")
        model = open_model(request.model, request.spec)
        method = Method.of(request, model.spec)
        for name, path in request.weights.items():
            if not path.exists():
                raise UserError(
                    f"--{name} {path} is not there", "name a folder, or a .safetensors or .gguf file"
                )
        place = pick_device(request.device)
        if request.offload is not None:
            check_offload(request.offload, place)
        if request.quantize is not None:
            check_quantize(request.quantize, place)
        _check_adapters(model, method, request.adapters)
        dtype = request.dtype
        if dtype == "auto":
            dtype = "float32" if place.type == "cpu" else "bfloat16"
        return cls(request, model, method, dtype, str(place))

    @property
    def spec(self) -> ModelSpec:
        return self.model.spec

    @cached_property
    def weights(self) -> dict[str, dict[str, Any]]:
        """Every component that has weights: the file or folder that the user named for it (None: the model's
        own), and their SHA-256 (`hashes.hash_of`). A hub's model must have been loaded before."""
        named = self.request.weights
        return {
            name: {
                "path": str(named[name]) if name in named else None,
                "sha256": shown_hash(named.get(name, self.model.folder / name), name),
            }
            for name in WEIGHTED
            if name in self.spec.components
        }

    @cached_property
    def adapters(self) -> list[dict[str, Any]]:
        """Every adapter: its file, its scale, the SHA-256 of the file."""
        return [
            {"file": str(each.file), "scale": each.scale, "sha256": file_hash(each.file)}
            for each in self.request.adapters
        ]

    def call(self, item: Item) -> Call:
        """The item, checked, with what it left open filled in."""
        return self.method.call(item)


def _check_adapters(model: Model, method: Method, adapters: tuple[Adapter, ...]) -> None:
    """Every adapter must be understood, fit the backbone's shape, and make sense with the others and with the
    sampler: all of it known without weights."""
    if not adapters:
        return
    files = [adapter.file for adapter in adapters]
    from uhr.models.adapters.files import check, read_all
    from uhr.models.loading import empty_transformer

    transformer = empty_transformer(model)
    check(read_all(files, transformer), transformer, method.pipeline_class.guided)
