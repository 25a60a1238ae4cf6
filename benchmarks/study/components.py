"""Compare adapters of minor and of major components when captions are noisy (URAE 2503.16322, section 2.3).

A model is trained from scratch on images of little detail, then adapted to images of much detail, some of
which have the caption of another class. All adapters have the same rank. Each is trained at the learning rate
of RATES that gives the least held-out loss with the first seed; the captions of held-out images are right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.study import textures
from benchmarks.study.training import fit
from uhr.train.objectives.draws import Draws
from uhr.train.objectives.flow import Flow
from uhr.train.trainable.adapters import Components, Lora
from uhr.train.trainable.base import Trainable

RANK = 4
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
PARTS: dict[str, Trainable] = {
    "minor components": Components(rank=RANK, targets=TARGETS, components="minor"),
    "major components": Components(rank=RANK, targets=TARGETS, components="major"),
    "LoRA": Lora(rank=RANK, alpha=RANK, targets=TARGETS),
}
RATES = (1e-3, 3e-3, 1e-2)
BEFORE, AFTER = 0.1, 0.6
"""Amplitude of the detail, in [0, 1], in the images of the base and in those of the adapters."""


@dataclass(frozen=True)
class Adapted:
    """One adapter.

    loss: held-out loss on the images that it is adapted to. before: that on the images of the base, which
    rises as the model forgets them.
    """

    loss: float
    before: float
    rate: float


def base_model(steps: int, seed: int) -> Any:
    """Train a transformer from scratch on images of little detail."""
    model = textures.transformer(seed)
    generator = torch.Generator().manual_seed(seed)
    denoiser = textures.denoiser(model)

    def loss() -> torch.Tensor:
        return (
            Flow()(denoiser, textures.batch(32, generator, BEFORE), Draws(0, 0, range(32)))
            .per_sample()
            .mean()
        )

    fit("train a base", model.parameters(), loss, steps, lr=3e-3)
    return model.requires_grad_(False)


def adapted(base: Any, part: Trainable, wrong: float, steps: int, seed: int, rate: float) -> Adapted:
    """Adapt a copy of the base to images of much detail, a share `wrong` of which have another caption."""
    model = textures.copied(base)
    part.prepare(model, textures.SPEC, seed)
    denoiser = textures.denoiser(model, part)
    generator = torch.Generator().manual_seed(1000 + seed)

    def loss() -> torch.Tensor:
        batch = textures.batch(16, generator, AFTER, wrong)
        return Flow()(denoiser, batch, Draws(0, 0, range(16))).per_sample().mean()

    fit(f"adapt {part.kind}", part.parameters(model).values(), loss, steps, rate)
    return Adapted(textures.held_out(model, AFTER), textures.held_out(model, BEFORE), rate)


def over_seeds(bases: Mapping[int, Any], part: Trainable, wrong: float, steps: int) -> list[Adapted]:
    """Adapt the base of each seed at the rate of `RATES` that is best on the first seed."""
    first, *others = bases
    tried = [adapted(bases[first], part, wrong, steps, first, rate) for rate in RATES]
    best = min(tried, key=lambda each: each.loss)
    return [best, *(adapted(bases[seed], part, wrong, steps, seed, best.rate) for seed in others)]
