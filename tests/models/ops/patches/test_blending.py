"""The blending of patches and windows hides that they disagree, measured by the seams that are left."""

import pytest
import torch

from uhr.models.ops import latents
from uhr.models.ops.filters import bicubic
from uhr.models.ops.patches.grid import Canvas, grid
from uhr.models.ops.patches.seams import seam_strength
from uhr.models.samplers.core import velocities
from uhr.models.samplers.core.engine import Engine
from uhr.models.samplers.multidiffusion import MultiDiffusionPipeline, windows


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def seams_of_shades(cascade, monkeypatch):
    """The seams of an image of 9 patches, each with its own shade."""
    given = bicubic(torch.rand(1, 3, 18, 18, generator=seeded(2)), 128, 128).clamp(0, 1)
    decode = Engine.decode

    def seams(shade, **options):
        shades = iter(shade * torch.randn(64, generator=seeded(3)))
        monkeypatch.setattr(Engine, "decode", lambda engine, z: decode(engine, z) + next(shades))
        found = cascade(
            "x", image=given, scale=2, num_inference_steps=2, max_sequence_length=16, generator=seeded(0),
            output_type="pt", **options,
        ).images  # fmt: skip
        return seam_strength(found, cascade.last_run.pieces), seam_strength(found, grid(256, 256, 128, 0))

    return seams


def test_the_feather_of_the_patch_cascade_hides_shades_that_edge_to_edge_show(cascade, seams_of_shades):
    feathered, _ = seams_of_shades(0.15)
    assert len(cascade.last_run.pieces) == 9
    edge_to_edge, same = seams_of_shades(0.15, overlap=0)
    assert edge_to_edge == same
    assert edge_to_edge > 1.5
    assert feathered - 1 < 0.2 * (edge_to_edge - 1)
    # and neither finds seams where patches agree
    assert abs(seams_of_shades(0)[0] - 1) < 0.15


def test_without_the_feather_the_shades_of_the_patch_cascade_show(seams_of_shades, monkeypatch):
    """What the measure is for: a blending that is broken does not pass."""
    blended, _ = seams_of_shades(0.15)
    monkeypatch.setattr(
        "uhr.models.ops.patches.grid.feather", lambda box, *_: torch.ones(box.height, box.width)
    )
    assert seams_of_shades(0.15)[0] - 1 > 3 * abs(blended - 1)


class LastOneWins(Canvas):
    """A mean that forgets all but the last of its windows."""

    def add(self, box, patch, weights=None):
        box.crop(self._sum).copy_(patch)
        box.crop(self._weights).fill_(1)


@pytest.fixture
def averaged(tiny_flux, monkeypatch):
    """The seams, in latents, of an image out of windows whose velocities disagree."""
    pipeline = MultiDiffusionPipeline.from_pretrained(tiny_flux, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    call = Engine.call

    def seams(shade, overlap):
        boxes, count = windows((32, 32), 16, overlap), 0
        shades = shade * torch.randn(len(boxes), 16, generator=seeded(7)).repeat_interleave(4, -1)

        def shaded(*arguments):
            nonlocal count
            count += 1
            return call(*arguments) + shades[(count - 1) % len(boxes)]

        monkeypatch.setattr(Engine, "call", shaded)
        tokens = pipeline(
            "x", height=256, width=256, num_inference_steps=3, guidance_scale=3.5, max_sequence_length=16,
            generator=seeded(0), output_type="latent", overlap=overlap,
        ).images  # fmt: skip
        assert list(pipeline.last_run.pieces) == [box.scaled(8) for box in boxes]
        return seam_strength(latents.unpack(tokens, 32, 32), boxes)

    return seams


def test_the_mean_of_windows_hides_most_of_what_edge_to_edge_shows(averaged):
    edge_to_edge, averaged_out = averaged(4, 0.0), averaged(4, 0.5)
    assert edge_to_edge > 2
    assert averaged_out - 1 < 0.4 * (edge_to_edge - 1)
    assert abs(averaged(0, 0.5) - 1) < 0.1


def test_without_the_mean_windows_show(averaged, monkeypatch):
    mean = averaged(4, 0.5)
    monkeypatch.setattr(velocities, "Canvas", LastOneWins)
    assert averaged(4, 0.5) - 1 > 2 * (mean - 1)
