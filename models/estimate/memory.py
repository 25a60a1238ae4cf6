"""What is on a device at the same time: the weights that an offload mode leaves there, and activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from uhr.models.estimate.weights import WeightBytes

BACKBONE, VAE = "transformer", "vae"


@dataclass(frozen=True)
class MemoryPhase:
    """A part of a call, and the bytes that it keeps on the device, by kind."""

    name: str
    held: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.held.values())

    @property
    def largest(self) -> str:
        return max(self.held, key=lambda name: self.held[name])


def resident(weights: Mapping[str, WeightBytes], active: str, offload: str | None) -> dict[str, int]:
    """Return the bytes of weights on the device while the component `active` computes, by what they are.

    Without offload these are all weights. "model": the component, and the VAE, which stays until the call
    ends. "group": two of its layers, since the next one is fetched meanwhile. "sequential": one of its
    layers, and the VAE (`loading/offload.py`).
    """
    if offload is None:
        return {f"{name} weights": each.whole for name, each in weights.items()}
    vae = {f"{VAE} weights": weights[VAE].whole}
    if offload == "model":
        own = {f"{active} weights": weights[active].whole}
        return own | vae if active == BACKBONE else own
    if offload == "group":
        return {f"{active} layers": 2 * weights[active].largest}
    return {f"{active} layer": weights[active].largest} | vae


def loading(
    weights: Mapping[str, WeightBytes], offload: str | None, quantised: bool, parked: bool
) -> MemoryPhase:
    """Return the phase in which weights are read.

    They are on the device if they stay or are quantised there; `parked` ones leave it one component after
    another.
    """
    if offload is not None and not quantised:
        return MemoryPhase("loading", {})
    held = {f"{name} weights": each.whole for name, each in weights.items()}
    if parked:
        largest = max(held, key=lambda name: held[name])
        held = {largest: held[largest]}
    return MemoryPhase("loading", held)


def transferred(weights: WeightBytes, offload: str | None, calls: int, rounds: int) -> tuple[int, bool]:
    """Return the bytes copied from the host (and back) for a component, and whether the device computes
    meanwhile. Whole components are copied once per round, layers at every call."""
    if offload is None:
        return 0, False
    if offload == "model":
        return 2 * rounds * weights.whole, False
    return calls * weights.whole, offload == "group"
