"""The reconstruction of images that are not trained on: their loss and PSNR, and the images themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from uhr.base.files import atomic
from uhr.models.files.run_steps import step_name
from uhr.models.ops.latents import to_uint8
from uhr.models.specs.spec import ModelSpec
from uhr.train.data.sets import NamedData
from uhr.train.objectives.draws import Draws
from uhr.train.objectives.vae.reconstruction import peak_signal_to_noise
from uhr.train.recipes.core.vae import VaeRecipe
from uhr.train.run.monitoring.held_out import held_out_data, held_out_rows
from uhr.train.run.vae.autoencoder import Autoencoder
from uhr.train.run.vae.phase import PixelUse, images_of


class HeldOutImages:
    """Measures the loss of one phase's objective and the PSNR, on reconstructions of the mean latents."""

    def __init__(
        self,
        recipe: VaeRecipe,
        phase: int,
        spec: ModelSpec,
        sets: Sequence[NamedData],
        device: torch.device,
    ) -> None:
        config = recipe.validation.loss
        assert config is not None
        data = held_out_data(config, recipe.phases[phase], spec, sets)
        self._rows, self._micro = held_out_rows(config, data), recipe.batch.micro
        self._use = PixelUse(data, recipe.phases[phase].objective, "mean", 1.0, device)

    def measure(self, network: Autoencoder) -> dict[str, Any]:
        """Return means over the images: {"loss": float, "psnr": dB, "parts": {name: float}}."""
        found: dict[str, list[float]] = {}
        for bucket, rows in _together(self._rows, self._micro):
            batch = self._use.batch(self._use.data.read_pixels(bucket, rows), NO_DRAWS)
            images, errors = self._use.errors(network, batch, NO_DRAWS)
            values = {**errors.parts, "loss": errors.loss, "psnr": peak_signal_to_noise(batch.images, images)}
            for name, value in values.items():
                found.setdefault(name, []).extend(value.tolist())
        means = {name: sum(values) / len(values) for name, values in found.items()}
        loss, psnr = means.pop("loss"), means.pop("psnr")
        return {"loss": loss, "images": len(self._rows), "psnr": psnr, "parts": means}


NO_DRAWS = Draws(0, 0, ())
"""Mean latents need no random numbers."""


def _together(rows: Sequence[tuple[int, int]], micro: int) -> Iterator[tuple[int, list[int]]]:
    """The rows of each bucket, at most `micro` at a time."""
    for bucket in dict.fromkeys(bucket for bucket, _ in rows):
        own = [row for other, row in rows if other == bucket]
        for start in range(0, len(own), micro):
            yield bucket, own[start : start + micro]


class ReconstructionWriter:
    """Writes images beside their reconstructions during a run: `validation/step-XXXXXXXX/NNN.png`, of which
    the left half is the original."""

    def __init__(
        self,
        folder: Path,
        recipe: VaeRecipe,
        spec: ModelSpec,
        sets: Sequence[NamedData],
        device: torch.device,
    ) -> None:
        config = recipe.validation.images
        assert config is not None
        self._data = held_out_data(config, recipe.phases[0], spec, sets)
        self._rows = held_out_rows(config, self._data)
        self._folder, self._device = folder, device

    def write(self, autoencoder: Autoencoder, step: int) -> Path:
        """Write every image with the VAE as it is, and return the folder."""
        from PIL import Image

        folder = self._folder / step_name(step)
        for number, (bucket, row) in enumerate(self._rows):
            images = images_of(self._data.read_pixels(bucket, [row]), self._device)
            both = torch.cat([images, autoencoder.code(images).images], dim=-1)
            with atomic(folder / f"{number:03d}.png") as temporary:
                Image.fromarray(to_uint8(both)[0].cpu().numpy()).save(temporary, format="PNG")
        return folder
