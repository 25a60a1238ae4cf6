"""Where weights are kept and how, and what that makes of a plan: memory and time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from uhr.models.estimate import operations
from uhr.models.estimate.devices import Device
from uhr.models.estimate.memory import BACKBONE, VAE, Phase, loading, moved, resident
from uhr.models.estimate.operations import Operations
from uhr.models.loading.quantize import MOVABLE
from uhr.models.vae.room import host_room, room

if TYPE_CHECKING:
    from uhr.models.estimate.plan import Plan, StagePlan


@dataclass(frozen=True)
class Way:
    """Where weights are kept, and how."""

    offload: str | None
    quantize: str | None

    @property
    def flags(self) -> str:
        given = {"--offload": self.offload, "--quantize": self.quantize}
        return " ".join(f"{flag} {value}" for flag, value in given.items() if value) or "neither"


def ways() -> list[Way]:
    """All that are worth trying. Layer by layer nothing is quantised: the libraries do not work together."""
    kinds = (None, "int8", "nf4")
    return [
        *(Way(offload, kind) for offload in (None, "model") for kind in kinds),
        *(Way(offload, None) for offload in ("group", "sequential")),
    ]


class Price:
    """A plan's memory and time in one way. Times are those of `plan.device`, which must be given for them."""

    def __init__(self, plan: Plan, way: Way) -> None:
        self._plan, self._cost, self.way = plan, plan.cost, way
        self._weights = self._cost.weights(way.quantize)

    @property
    def _device(self) -> Device:
        assert self._plan.device is not None
        return self._plan.device

    @cached_property
    def room(self) -> int:
        """Bytes that exact tiling is given (`vae/room.py`)."""
        if self._plan.device is None:
            return host_room()
        return room(self._plan.device.memory, 0 if self.way.offload else self._whole)

    @property
    def _whole(self) -> int:
        return sum(each.whole for each in self._weights.values())

    @property
    def host(self) -> int:
        """Bytes of weights in the host's memory."""
        return self._whole if self.way.offload else 0

    @cached_property
    def phases(self) -> list[Phase]:
        """The parts of the call and what each holds on the device; of those of one name the largest."""
        found = [self._loading(), *self._texts()]
        for stage in self._plan.stages:
            found.append(self._stage(stage))
            for coding in stage.stage.codings:
                held = resident(self._weights, VAE, self.way.offload)
                need = {"vae activations": self._cost.coding(coding, self.room)[0]}
                found.append(Phase(f"{coding.part} {coding.width}x{coding.height}", held | need))
        largest = {phase.name: phase for phase in sorted(found, key=lambda phase: phase.total)}
        return [phase for phase in found if largest[phase.name] is phase and phase.total]

    @property
    def peak(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def fits(self) -> bool:
        return self.peak.total <= self._device.usable

    def _loading(self) -> Phase:
        offload, quantize = self.way.offload, self.way.quantize
        parked = offload is not None and quantize in MOVABLE and not self._plan.method.request.adapters
        return loading(self._weights, offload, quantize is not None, parked)

    def _texts(self) -> list[Phase]:
        """Encoding the prompt: what its own activations take is too little to count."""
        if self.way.offload is None:
            return []
        return [
            Phase(f"encode text ({name})", resident(self._weights, name, self.way.offload))
            for name in self._cost.text_encoders
        ]

    def _stage(self, stage: StagePlan) -> Phase:
        needs = [self._cost.activations(each, self.way.quantize) for each in stage.stage.calls]
        held = resident(self._weights, BACKBONE, self.way.offload) | max(
            needs, key=lambda need: sum(need.values())
        )
        kept = stage.stage.branches * max(self._cost.guide(each) for each in stage.stage.calls)
        return Phase(f"stage {stage.stage.name}", held | ({"guide's keys and values": kept} if kept else {}))

    def coded(self, stage: StagePlan) -> Operations:
        """The VAE's work in a stage."""
        return operations.total(
            self._cost.coding(each, self.room)[1].times(each.count) for each in stage.stage.codings
        )

    @cached_property
    def operations(self) -> Operations:
        """Of the whole call."""
        work = (part for stage in self._plan.stages for part in (stage.backbone, self.coded(stage)))
        return operations.total((self._plan.text, *work))

    @cached_property
    def seconds(self) -> dict[str, float]:
        """By text, each stage's backbone, the VAE, and what quantised or offloaded weights take."""
        device, dtype, plan = self._device, self._plan.dtype, self._plan
        coded = operations.total(self.coded(stage) for stage in plan.stages)
        found = {
            "text": device.seconds(plan.text, dtype),
            **{stage.stage.name: device.seconds(stage.backbone, dtype) for stage in plan.stages},
            "VAE": device.seconds(coded, dtype),
        }
        if self.way.quantize is not None:
            # read, and written in the dtype, at every call
            each = self._weights[BACKBONE].whole + self._cost.weights(None)[BACKBONE].whole
            found["dequantising"] = device.reading(plan.model_calls * each)
        return {**found, "weights coming and going": self._waits()}

    @property
    def total(self) -> float:
        """Seconds in all."""
        return sum(self.seconds.values())

    def _waits(self) -> float:
        """Seconds in which nothing is computed, since weights are on their way."""
        device, offload = self._device, self.way.offload
        texts = (moved(self._weights[name], offload, 1, 1)[0] for name in self._cost.text_encoders)
        waits = sum(map(device.moving, texts))
        for stage in self._plan.stages:
            # the backbone comes back after the VAE has worked: once a round
            size, meanwhile = moved(
                self._weights[BACKBONE], offload, stage.stage.total_calls, stage.stage.rounds
            )
            compute = device.seconds(stage.backbone, self._plan.dtype) if meanwhile else 0.0
            waits += max(0.0, device.moving(size) - compute)
        return waits
