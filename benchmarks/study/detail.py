"""UltraFlux's robust wavelet loss against the plain square, on the error of fine detail.

Two copies of one transformer are trained from the same start on the same draws, one by each objective. The
error of the clean estimate x_sigma - sigma v is measured in the highest Haar bands and in the lowest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.study import textures
from benchmarks.study.training import fit, rms
from uhr.models.ops.filters import haar
from uhr.train.objectives.base import Objective
from uhr.train.objectives.draws import Draws
from uhr.train.objectives.flow import Flow
from uhr.train.objectives.wavelet import SnrHuberWavelet

LEVELS = (0.1, 0.3, 0.5, 0.7)


@dataclass(frozen=True)
class BandErrors:
    """RMS error of the clean estimate's detail bands and low band at one noise level, by objective."""

    sigma: float
    detail: dict[str, float]
    low: dict[str, float]

    @property
    def ratio(self) -> float:
        """Detail error of the wavelet loss over that of the square: below 1 it is better."""
        return self.detail["snr-huber-wavelet"] / self.detail["flow"]


def compared(steps: int, seed: int) -> list[BandErrors]:
    """Train by both objectives, and measure both models at each level."""
    models = {}
    objectives: tuple[Objective, ...] = (Flow(), SnrHuberWavelet())
    for objective in objectives:
        model = textures.transformer(seed)
        denoiser = textures.denoiser(model)
        generator = torch.Generator().manual_seed(seed)

        def loss(
            objective: Objective = objective,
            denoiser: object = denoiser,
            generator: torch.Generator = generator,
        ) -> torch.Tensor:
            return (
                objective(denoiser, textures.batch(32, generator), Draws(0, 0, range(32))).per_sample().mean()
            )

        fit(f"train by {objective.kind}", model.parameters(), loss, steps, lr=3e-3)
        models[objective.kind] = denoiser
    found = []
    for level in LEVELS:
        samples = textures.batch(256, torch.Generator().manual_seed(5), sigma=level)
        detail, low = {}, {}
        for kind, denoiser in models.items():
            with torch.no_grad():
                velocity = denoiser.velocity(samples.noisy, samples.sigma, samples.condition)
            error = samples.levels * (samples.target - velocity)
            bands = haar(error)
            low[kind], detail[kind] = rms(bands[0]), rms(torch.cat(bands[1:], dim=1))
        found.append(BandErrors(level, detail, low))
    return found
