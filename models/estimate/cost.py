"""The memory and time of a planned call, depending on where its weights are kept and how."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from uhr.models.estimate import operations
from uhr.models.estimate.devices import Device
from uhr.models.estimate.memory import BACKBONE, VAE, MemoryPhase, loading, resident, transferred
from uhr.models.estimate.operations import Operations
from uhr.models.loading.quantize import MOVABLE
from uhr.models.vae.budget import device_budget, host_budget

if TYPE_CHECKING:
    from uhr.models.estimate.plan import CallPlan, StagePlan


@dataclass(frozen=True)
class WeightPlacement:
    """Where weights are kept (`--offload`), and in which form (`--quantize`)."""

    offload: str | None
    quantize: str | None

    @property
    def flags(self) -> str:
        given = {"--offload": self.offload, "--quantize": self.quantize}
        return " ".join(f"{flag} {value}" for flag, value in given.items() if value) or "neither"


def placements() -> list[WeightPlacement]:
    """Return the placements worth trying.

    Offloading by layers excludes quantisation, since the libraries do not work together.
    """
    kinds = (None, "int8", "nf4")
    return [
        *(WeightPlacement(offload, kind) for offload in (None, "model") for kind in kinds),
        *(WeightPlacement(offload, None) for offload in ("group", "sequential")),
    ]


class CostEstimate:
    """The memory (bytes) and time (seconds) of a planned call under one placement.

    Times and `fits` need `plan.device`.
    """

    def __init__(self, plan: CallPlan, placement: WeightPlacement) -> None:
        self._plan, self._cost, self.placement = plan, plan.cost, placement
        self._weights = self._cost.weights(placement.quantize)

    @property
    def _device(self) -> Device:
        assert self._plan.device is not None
        return self._plan.device

    @cached_property
    def vae_memory(self) -> int:
        """Bytes that exact tiling of the VAE may use (`vae/budget.py`)."""
        if self._plan.device is None:
            return host_budget()
        return device_budget(self._plan.device.memory, 0 if self.placement.offload else self._whole)

    @property
    def _whole(self) -> int:
        return sum(each.whole for each in self._weights.values())

    @property
    def host(self) -> int:
        """Bytes of weights in the host's memory."""
        return self._whole if self.placement.offload else 0

    @cached_property
    def phases(self) -> list[MemoryPhase]:
        """The parts of the call and what each keeps on the device; only the largest of each name."""
        found = [self._loading(), *self._texts()]
        for stage in self._plan.stages:
            found.append(self._stage(stage))
            for call in stage.stage.vae_calls:
                held = resident(self._weights, VAE, self.placement.offload)
                need = {"vae activations": self._cost.vae_call(call, self.vae_memory)[0]}
                found.append(MemoryPhase(f"{call.part} {call.width}x{call.height}", held | need))
        largest = {phase.name: phase for phase in sorted(found, key=lambda phase: phase.total)}
        return [phase for phase in found if largest[phase.name] is phase and phase.total]

    @property
    def peak(self) -> MemoryPhase:
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def fits(self) -> bool:
        return self.peak.total <= self._device.usable

    def _loading(self) -> MemoryPhase:
        offload, quantize = self.placement.offload, self.placement.quantize
        parked = offload is not None and quantize in MOVABLE and not self._plan.choice.request.adapters
        return loading(self._weights, offload, quantize is not None, parked)

    def _texts(self) -> list[MemoryPhase]:
        """Text encoding, by encoder. Its activations are too small to count."""
        if self.placement.offload is None:
            return []
        return [
            MemoryPhase(f"encode text ({name})", resident(self._weights, name, self.placement.offload))
            for name in self._cost.text_encoders
        ]

    def _stage(self, stage: StagePlan) -> MemoryPhase:
        needs = [self._cost.activations(each, self.placement.quantize) for each in stage.stage.calls]
        held = resident(self._weights, BACKBONE, self.placement.offload) | max(
            needs, key=lambda need: sum(need.values())
        )
        kept = stage.stage.branches * max(self._cost.guide(each) for each in stage.stage.calls)
        return MemoryPhase(
            f"stage {stage.stage.name}", held | ({"guide's keys and values": kept} if kept else {})
        )

    def coded(self, stage: StagePlan) -> Operations:
        """Return the VAE's operations in a stage."""
        return operations.total(
            self._cost.vae_call(each, self.vae_memory)[1].times(each.count) for each in stage.stage.vae_calls
        )

    @cached_property
    def operations(self) -> Operations:
        """Operations of the whole call."""
        work = (part for stage in self._plan.stages for part in (stage.backbone, self.coded(stage)))
        return operations.total((self._plan.text, *work))

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Seconds of text encoding, each stage's backbone, the VAE, dequantising and moving weights, by
        name."""
        device, dtype, plan = self._device, self._plan.dtype, self._plan
        coded = operations.total(self.coded(stage) for stage in plan.stages)
        found = {
            "text": device.seconds(plan.text, dtype),
            **{stage.stage.name: device.seconds(stage.backbone, dtype) for stage in plan.stages},
            "VAE": device.seconds(coded, dtype),
        }
        if self.placement.quantize is not None:
            # read, and written in the dtype, at every call
            each = self._weights[BACKBONE].whole + self._cost.weights(None)[BACKBONE].whole
            found["dequantising"] = device.reading(plan.model_calls * each)
        return {**found, "weights coming and going": self._waits()}

    @property
    def total(self) -> float:
        """Seconds of the whole call."""
        return sum(self.seconds.values())

    def _waits(self) -> float:
        """Seconds in which nothing is computed because weights are being moved."""
        device, offload = self._device, self.placement.offload
        texts = (transferred(self._weights[name], offload, 1, 1)[0] for name in self._cost.text_encoders)
        waits = sum(map(device.moving, texts))
        for stage in self._plan.stages:
            # the backbone comes back after the VAE has worked: once a round
            size, meanwhile = transferred(
                self._weights[BACKBONE], offload, stage.stage.total_calls, stage.stage.rounds
            )
            compute = device.seconds(stage.backbone, self._plan.dtype) if meanwhile else 0.0
            waits += max(0.0, device.moving(size) - compute)
        return waits
