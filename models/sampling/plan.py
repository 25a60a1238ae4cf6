"""What a call will take, worked out from shapes alone: stages, tokens, calls, operations, memory, time.

No weights are read; a bare spec's name is enough. Times are counts of operations over what a GPU's data sheet
says it can do, at the shares of `costs/devices.py`: an estimate, not a measurement.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ByteSize

from uhr.base.errors import unknown
from uhr.models.costs import operations
from uhr.models.costs.at_work import BackboneMemory, coding_takes
from uhr.models.costs.devices import DEFAULT, Device, here
from uhr.models.costs.devices import device as find_device
from uhr.models.costs.memory import BACKBONE, VAE, Phase, loading, moved, resident
from uhr.models.costs.operations import BackboneCost, Operations
from uhr.models.costs.shapes import bare, empty_components
from uhr.models.costs.weights import WeightBytes, weight_bytes
from uhr.models.costs.work import Calls, Coding
from uhr.models.loading import DTYPES, Model, open_model, pick_dtype
from uhr.models.offload import Offload
from uhr.models.quantize import KINDS, MOVABLE
from uhr.models.registry import get
from uhr.models.samplers import check_name
from uhr.models.sampling.request import Item, Request
from uhr.models.sampling.setup import Call, Method
from uhr.models.spec import ModelSpec
from uhr.models.stages import Stage
from uhr.models.vae.f16 import F16, vae_factor
from uhr.models.vae.room import MOST, room
from uhr.models.vae.tiled import ExactTiling

TEXT_ENCODERS = {"text_encoder": ("clip", "qwen3"), "text_encoder_2": ("t5",)}
"""Names of `ModelSpec.text_lengths`, by component."""

TOKEN_WISE = ("image", "text", "joint", "head")
"""What `operations.passed_by` says of layers that every token passes."""


@dataclass(frozen=True)
class StagePlan:
    """One stage: `calls` are of all its branches of guidance, `codings` the VAE's."""

    stage: Stage
    branches: int
    calls: tuple[Calls, ...]
    codings: tuple[Coding, ...]
    backbone: Operations

    @property
    def count(self) -> int:
        """Calls of the backbone."""
        return self.branches * sum(each.count for each in self.calls)


@dataclass(frozen=True)
class Way:
    """Where weights are kept and how: what one of them makes of memory and time."""

    offload: str | None
    quantize: str | None

    @property
    def flags(self) -> str:
        given = {"--offload": self.offload, "--quantize": self.quantize}
        return " ".join(f"{flag} {value}" for flag, value in given.items() if value) or "neither"


def plan(request: Request, item: Item, on: str | None = None) -> Plan:
    """What the picture will take on the GPU of that name: this machine's if None, or else an H200.

    The model may be the bare name of a spec, or a spec's hub id, of which nothing is fetched. UserError for
    what cannot be made.
    """
    check_name(request.sampler)
    if request.dtype not in ("auto", *DTYPES):
        raise unknown("dtype", request.dtype, ("auto", *DTYPES), "--dtype")
    if request.offload is not None and request.offload not in list(Offload):
        raise unknown("offload", request.offload, list(Offload))
    if request.quantize is not None and request.quantize not in KINDS:
        raise unknown("quantisation", request.quantize, KINDS)
    device = None
    if request.device != "cpu" or on is not None:
        device = here() or find_device(DEFAULT) if on is None else find_device(on)
    model = _model(request)
    method = Method.of(request, model if isinstance(model, ModelSpec) else model.spec)
    dtype = request.dtype
    if dtype == "auto":
        dtype = "float32" if device is None else "bfloat16"
    return Plan(method, method.call(item), model, device, dtype)


def _model(request: Request) -> Model | ModelSpec:
    known = bare(request.model)
    if known is None or request.base is not None:
        return open_model(request.model, request.spec, base=request.base)
    return known if request.spec is None else get(request.spec)


def _packed(file: Path | None) -> int | None:
    """Bytes of weights that stay as their file packs them; None for those that are read in a dtype."""
    return file.stat().st_size if file is not None and file.suffix == ".gguf" else None


class Plan:
    """A call of a method on a model that is not loaded, on a device (None: a CPU, of which no time is
    said)."""

    def __init__(
        self, method: Method, call: Call, model: Model | ModelSpec, device: Device | None, dtype: str
    ) -> None:
        self.method, self.call, self.device, self.dtype = method, call, device, dtype
        self._type = pick_dtype(dtype)
        self._weights: dict[str | None, dict[str, WeightBytes]] = {}
        self._coded: dict[tuple[Any, ...], tuple[int, Operations]] = {}
        self._peaks: dict[Calls, int] = {}
        here = {} if isinstance(model, ModelSpec) else model.weights
        self._files = {**here, **method.request.weights}
        self._parts: Mapping[str, Any] = empty_components(model)
        for part in self._parts.values():
            torch.nn.Module.to(part, dtype=self._type)
        self.backbone = BackboneCost.of(self._parts[BACKBONE])
        cls, spec = method.pipeline_class, method.spec
        picture = call.item.image is not None
        ask = cls.ask(spec, method.options, *call.planned, call.steps, picture)
        self._ask = ask
        self._match_vae(ask.multiple // spec.patch)
        options = cls.resolve(method.options)
        stages = cls.checked_plan(ask, options)
        codings = cls.codings(ask, options, stages)
        self.stages = [
            self._stage(stage, coded, options) for stage, coded in zip(stages, codings, strict=True)
        ]

    def _match_vae(self, factor: int) -> None:
        """A sampler that works on an F16 VAE makes one of any other."""
        if vae_factor(self._parts[VAE]) != factor:
            F16().apply(self._parts[VAE])

    def _stage(self, stage: Stage, codings: tuple[Coding, ...], options: Any) -> StagePlan:
        cls, negative = self.method.pipeline_class, self.call.item.negative is not None
        kind = self.method.spec.guidance
        branches = cls.branches(kind, options, self.call.guidance, negative, stage)
        calls = cls.calls(self._ask, options, stage, self.text_tokens)
        work = operations.total(each.operations(self.backbone) for each in calls)
        return StagePlan(stage, branches, calls, codings, work.times(branches))

    @property
    def way(self) -> Way:
        return Way(self.method.request.offload, self.method.request.quantize)

    @property
    def text_tokens(self) -> int:
        """Of the prompt as the backbone sees it."""
        return max(self.method.spec.text_lengths.values())

    @property
    def model_calls(self) -> int:
        """Calls of the backbone, of all stages and branches."""
        return sum(stage.count for stage in self.stages)

    # operations

    @functools.cached_property
    def text(self) -> Operations:
        """Encoding the prompt, and the negative one where there is one."""
        prompts = max(stage.branches for stage in self.stages)
        lengths = self.method.spec.text_lengths
        once = operations.total(
            operations.encode_text(self._parts[name], lengths[length])
            for name, names in TEXT_ENCODERS.items()
            for length in names
            if name in self._parts and length in lengths
        )
        return once.times(prompts)

    def coded(self, stage: StagePlan, way: Way) -> Operations:
        """The VAE's work in a stage."""
        return operations.total(
            self._coding(each, self._room(way))[1].times(each.count) for each in stage.codings
        )

    def operations(self, way: Way) -> Operations:
        """Of the whole call."""
        work = (part for stage in self.stages for part in (stage.backbone, self.coded(stage, way)))
        return operations.total((self.text, *work))

    # memory

    def weights(self, way: Way) -> dict[str, WeightBytes]:
        """By component; adapters count with the backbone."""
        if way.quantize not in self._weights:
            self._weights[way.quantize] = self._weighed(way.quantize)
        return self._weights[way.quantize]

    def _weighed(self, quantize: str | None) -> dict[str, WeightBytes]:
        found = {name: weight_bytes(part, self._type, quantize) for name, part in self._parts.items()}
        request = self.method.request
        adapters = sum(adapter.file.stat().st_size for adapter in request.adapters)
        own = found[BACKBONE]
        packed = _packed(self._files.get(BACKBONE))
        whole = own.whole if packed is None else packed
        return found | {BACKBONE: WeightBytes(whole + adapters, own.largest)}

    def phases(self, way: Way) -> list[Phase]:
        """The parts of the call and what each holds on the device; those of one kind at their largest."""
        weights = self.weights(way)
        parked = way.offload is not None and way.quantize in MOVABLE and not self.method.request.adapters
        found = [loading(weights, way.offload, way.quantize is not None, parked)]
        if way.offload is not None:
            encoders = [name for name in TEXT_ENCODERS if name in weights]
            found += [
                Phase(f"encode text ({name})", resident(weights, name, way.offload)) for name in encoders
            ]
        for stage in self.stages:
            held = resident(weights, BACKBONE, way.offload) | self._activations(stage, way)
            found.append(Phase(f"stage {stage.stage.name}", held))
            for coding in stage.codings:
                need = {"vae activations": self._coding(coding, self._room(way))[0]}
                name = f"{coding.part} {coding.width}x{coding.height}"
                found.append(Phase(name, resident(weights, VAE, way.offload) | need))
        named = {phase.name: phase for phase in sorted(found, key=lambda phase: phase.total)}
        return [phase for phase in found if named[phase.name] is phase and phase.total]

    def host(self, way: Way) -> int:
        """Bytes of weights in the host's memory."""
        return 0 if way.offload is None else sum(each.whole for each in self.weights(way).values())

    def peak(self, way: Way) -> Phase:
        return max(self.phases(way), key=lambda phase: phase.total)

    def _activations(self, stage: StagePlan, way: Way) -> dict[str, int]:
        held = {"activations": max(self._peak(each) for each in stage.calls)}
        kept = max(self._backbone_memory.kept(each) for each in stage.calls)
        if kept:
            held["guide's keys and values"] = kept * stage.branches
        if way.quantize is not None:
            held["a layer's weights, dequantised"] = self._widest[0] * self._type.itemsize
        if way.quantize == "int8":
            # sums in 32 bits, and the input in 8
            rows = max(each.together * (each.image + each.text) for each in stage.calls)
            held["products of 8 bits"] = rows * (4 * self._widest[1] + self._widest[2])
        return held

    def _peak(self, calls: Calls) -> int:
        one = replace(calls, count=1)
        if one not in self._peaks:
            self._peaks[one] = self._backbone_memory.peak(one)
        return self._peaks[one]

    @functools.cached_property
    def _backbone_memory(self) -> BackboneMemory:
        return BackboneMemory(self.method.pipeline_class.backbone, self._parts[BACKBONE], self._type)

    @functools.cached_property
    def _widest(self) -> tuple[int, int, int]:
        """Of the backbone's linear layers: most weights, outputs, inputs."""
        # those of the modulation see one row, and their input is the model's width
        named = self._parts[BACKBONE].named_modules()
        linears = [
            module
            for name, module in named
            if isinstance(module, torch.nn.Linear) and operations.passed_by(name) in TOKEN_WISE
        ]
        return (
            max(m.in_features * m.out_features for m in linears),
            max(m.out_features for m in linears),
            max(m.in_features for m in linears),
        )

    def _room(self, way: Way) -> int:
        """Bytes that exact tiling is given (`vae/room.py`)."""
        if self.device is None:
            return MOST
        whole = sum(each.whole for each in self.weights(way).values()) if way.offload is None else 0
        return room(self.device.memory, whole)

    def _coding(self, coding: Coding, memory: int) -> tuple[int, Operations]:
        key = coding.part, coding.height, coding.width, memory
        if key not in self._coded:
            self._coded[key] = coding_takes(self._parts[VAE], coding, ExactTiling(memory=ByteSize(memory)))
        return self._coded[key]

    # time

    def seconds(self, way: Way) -> dict[str, float]:
        """By text, each stage's backbone, the VAE, and what quantised or offloaded weights take."""
        assert self.device is not None
        device, weights = self.device, self.weights(way)
        found = {"text": device.seconds(self.text, self.dtype)}
        waits = sum(
            device.moving(moved(weights[name], way.offload, 1, 1)[0])
            for name in TEXT_ENCODERS
            if name in weights
        )
        for stage in self.stages:
            compute = device.seconds(stage.backbone, self.dtype)
            size, meanwhile = moved(weights[BACKBONE], way.offload, stage.count, self._rounds(stage))
            moving = device.moving(size)
            waits += max(0.0, moving - compute) if meanwhile else moving
            found[stage.stage.name] = compute
        work = operations.total(self.coded(stage, way) for stage in self.stages)
        found["VAE"] = device.seconds(work, self.dtype)
        if way.quantize is not None:
            # read, and written in the dtype, at every call
            dense = self.weights(Way(None, None))[BACKBONE].whole
            size = self.model_calls * (weights[BACKBONE].whole + dense)
            found["dequantising"] = device.reading(size)
        return {**found, "weights coming and going": waits}

    def ways(self) -> list[Way]:
        """All that can be told of where weights are kept and how. Layer by layer nothing is quantised: the
        libraries do not work together."""
        kinds = (None, "int8", "nf4")
        return [
            *(Way(offload, kind) for offload in (None, "model") for kind in kinds),
            *(Way(offload, None) for offload in ("group", "sequential")),
        ]

    def fits(self, way: Way) -> bool:
        assert self.device is not None
        return self.peak(way).total <= self.device.usable

    def fastest(self) -> Way | None:
        """The way that fits the device and takes least time, the one asked for before its equals."""
        fitting = [way for way in (self.way, *self.ways()) if self.fits(way)]
        return min(fitting, key=lambda way: sum(self.seconds(way).values()), default=None)

    def _rounds(self, stage: StagePlan) -> int:
        """How often the backbone comes back after the VAE has worked."""
        return stage.stage.rounds
