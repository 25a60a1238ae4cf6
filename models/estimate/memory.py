"""What is on a device at once: which weights an offload leaves there, beside what a pass needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from uhr.models.estimate.weights import WeightBytes

BACKBONE, VAE = "transformer", "vae"


@dataclass(frozen=True)
class Phase:
    """A part of a call, and the bytes on the device by what they are."""

    name: str
    held: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.held.values())

    @property
    def largest(self) -> str:
        return max(self.held, key=lambda name: self.held[name])


def resident(weights: Mapping[str, WeightBytes], active: str, offload: str | None) -> dict[str, int]:
    """Bytes of weights on the device while a component works.

    none: all. model: that component, and the VAE, which nothing drives out before the call ends. group: two
    layers of it, the next being fetched meanwhile. sequential: one layer of it, and the VAE (`offload.py`).
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


def loading(weights: Mapping[str, WeightBytes], offload: str | None, quantised: bool, parked: bool) -> Phase:
    """While weights are read: on the device where they stay there, or are quantised there, one component
    after another if they are `parked`."""
    if offload is not None and not quantised:
        return Phase("loading", {})
    held = {f"{name} weights": each.whole for name, each in weights.items()}
    if parked:
        largest = max(held, key=lambda name: held[name])
        held = {largest: held[largest]}
    return Phase("loading", held)


def moved(weights: WeightBytes, offload: str | None, calls: int, rounds: int) -> tuple[int, bool]:
    """Bytes that come from the host (and go back) for so many calls of a component in so many rounds, and
    whether they come while the device computes. Whole components come once a round, layers at every call."""
    if offload is None:
        return 0, False
    if offload == "model":
        return 2 * rounds * weights.whole, False
    return calls * weights.whole, offload == "group"
