"""The cost of a model's components: weights, operations and activations, each counted once and cached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from pydantic import ByteSize

from uhr.models.estimate import operations
from uhr.models.estimate.activations import BackboneMemory, vae_call_cost
from uhr.models.estimate.memory import BACKBONE, VAE
from uhr.models.estimate.operations import BackboneCost, Operations
from uhr.models.estimate.shapes import empty_components
from uhr.models.estimate.weights import WeightBytes, weight_bytes
from uhr.models.families.base import Backbone
from uhr.models.loading.opening import Model
from uhr.models.samplers.core.plan import BackboneCalls, VaeCall
from uhr.models.specs.registry import SPECS
from uhr.models.specs.spec import ModelSpec
from uhr.models.vae.f16 import F16, vae_factor
from uhr.models.vae.tiled import ExactTiling

TEXT_ENCODERS = {"text_encoder": ("clip", "qwen3"), "text_encoder_2": ("t5",)}
"""Names of `ModelSpec.text_lengths`, by component."""

TOKEN_WISE = ("image", "text", "joint", "head")
"""Results of `operations.passed_by` for layers that every token passes."""


class ModelCost:
    """The cost of a model, or of a bare spec, loaded in `dtype`.

    `factor` is the VAE's side in px of a latent: a sampler that works on an F16 VAE converts any other.
    `files` are weights outside the model's folder, by component; `adapters` is the size in bytes of the
    adapters on the backbone.
    """

    def __init__(
        self,
        model: Model | ModelSpec,
        backbone: Backbone,
        dtype: torch.dtype,
        factor: int,
        files: Mapping[str, Path],
        adapters: int,
    ) -> None:
        self._parts: Mapping[str, Any] = empty_components(model)
        for part in self._parts.values():
            torch.nn.Module.to(part, dtype=dtype)
        if vae_factor(self._parts[VAE]) != factor:
            F16().apply(self._parts[VAE])
        self._lengths = (model if isinstance(model, ModelSpec) else model.spec).text_lengths
        self._backbone, self.dtype, self._files, self._adapters = backbone, dtype, files, adapters
        self.backbone = BackboneCost.of(self._parts[BACKBONE])
        self._weights: dict[str | None, dict[str, WeightBytes]] = {}
        self._coded: dict[tuple[Any, ...], tuple[int, Operations]] = {}
        self._peaks: dict[BackboneCalls, int] = {}

    def part(self, name: str) -> Any:
        """Return a component, without weights."""
        return self._parts[name]

    @property
    def text_encoders(self) -> list[str]:
        return [name for name in TEXT_ENCODERS if name in self._parts]

    @cached_property
    def text(self) -> Operations:
        """Operations of encoding one prompt."""
        return operations.total(
            operations.encode_text(self._parts[name], self._lengths[length])
            for name in self.text_encoders
            for length in TEXT_ENCODERS[name]
            if length in self._lengths
        )

    def weights(self, quantize: str | None) -> dict[str, WeightBytes]:
        """Return the bytes of weights by component; adapters count with the backbone."""
        if quantize not in self._weights:
            found = {name: weight_bytes(part, self.dtype, quantize) for name, part in self._parts.items()}
            own, packed = found[BACKBONE], _packed(self._files.get(BACKBONE))
            whole = (own.whole if packed is None else packed) + self._adapters
            self._weights[quantize] = found | {BACKBONE: WeightBytes(whole, own.largest)}
        return self._weights[quantize]

    def vae_call(self, call: VaeCall, memory: int) -> tuple[int, Operations]:
        """Return `activations.vae_call_cost` under exact tiling in `memory` bytes."""
        key = call.part, call.height, call.width, memory
        if key not in self._coded:
            tiling = ExactTiling(memory=ByteSize(memory))
            self._coded[key] = vae_call_cost(self._parts[VAE], call, tiling)
        return self._coded[key]

    def activations(self, calls: BackboneCalls, quantize: str | None) -> dict[str, int]:
        """Return the bytes that one of the calls needs besides the weights, by what they are."""
        one = replace(calls, count=1)
        if one not in self._peaks:
            self._peaks[one] = self._memory.peak(one)
        held = {"activations": self._peaks[one]}
        if quantize is not None:
            held["a layer's weights, dequantised"] = self._widest[0] * self.dtype.itemsize
        if quantize == "int8":
            # sums in 32 bits, and the input in 8
            rows = calls.together * (calls.image + calls.text)
            held["products of 8 bits"] = rows * (4 * self._widest[1] + self._widest[2])
        return held

    def guide(self, calls: BackboneCalls) -> int:
        """Return the bytes of a guide's keys and values that one branch of guidance keeps."""
        return self._memory.kept(calls)

    @cached_property
    def _memory(self) -> BackboneMemory:
        return BackboneMemory(self._backbone, self._parts[BACKBONE], self.dtype)

    @cached_property
    def _widest(self) -> tuple[int, int, int]:
        """The largest numbers of weights, outputs and inputs of the backbone's linear layers."""
        linears = [
            module
            for name, module in self._parts[BACKBONE].named_modules()
            if isinstance(module, torch.nn.Linear) and operations.passed_by(name) in TOKEN_WISE
        ]
        weights = max(m.in_features * m.out_features for m in linears)
        return weights, max(m.out_features for m in linears), max(m.in_features for m in linears)


def cost_of(
    model: Model | ModelSpec,
    backbone: Backbone,
    dtype: torch.dtype,
    factor: int,
    files: Mapping[str, Path],
    adapters: int,
) -> ModelCost:
    """The `ModelCost` of a plan. That of a spec of the registry with its own weights alone is built once: its
    modules without memory take a second."""
    if not files and not adapters and isinstance(model, ModelSpec) and SPECS.get(model.name) is model:
        return _cost_of_spec(model.name, backbone, dtype, factor)
    return ModelCost(model, backbone, dtype, factor, files, adapters)


@lru_cache(maxsize=4)
def _cost_of_spec(name: str, backbone: Backbone, dtype: torch.dtype, factor: int) -> ModelCost:
    return ModelCost(SPECS[name], backbone, dtype, factor, files={}, adapters=0)


def _packed(file: Path | None) -> int | None:
    """The bytes of weights that stay packed as in their file; None for weights that are read in a dtype."""
    return file.stat().st_size if file is not None and file.suffix == ".gguf" else None
