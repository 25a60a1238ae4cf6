"""Given images through every sampler that takes one: with an analytic field the enlargement comes back."""

import contextlib

import numpy as np
import pytest
import torch
from PIL import Image

from uhr.models.generate.request import Item, Request
from uhr.models.generate.session import Session
from uhr.models.generate.setup import Setup
from uhr.models.ops.filters import bicubic
from uhr.models.ops.fitting import continued
from uhr.models.samplers import SAMPLERS, demofusion, find_sampler
from uhr.models.samplers.core.engine import Engine, Noise

OPTIONS = {
    "sdedit": {"strength": 0.5},
    "multidiffusion": {"strength": 0.5},
    # in one stage: a second one follows the latents of the first, enlarged
    "hiflow": {"cascade": [4]},
    "ultragen": {"sharpening": None},
    # by the true noise level in the backbone's ear, too
    "patch-cascade": {"schedule": "warped-grid"},
}
"""Of samplers whose path begins below pure noise."""

FROM_NOISE = {"imax": {"swin": False}, "demofusion": {"jitter": False, "blur": 1e-3}}


def taking_images():
    return [name for name in SAMPLERS if find_sampler(name).takes_image]


def test_every_sampler_that_takes_an_image_is_here():
    assert sorted(taking_images()) == sorted({**OPTIONS, **FROM_NOISE})


def waves(height, width):
    """An image whose waves are 24 px long: a stretch of a hundredth moves them by a sixth of that."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
    shapes = rows + 0 * columns, columns + 0 * rows, rows + columns
    values = torch.stack([0.5 + 0.35 * torch.sin(2 * torch.pi * shape / 24) for shape in shapes], -1)
    return Image.fromarray((255 * values).round().byte().numpy())


def encode(images, generator=None):
    """A codec that keeps the mean of every 8 x 8 block."""
    means = torch.nn.functional.avg_pool2d(images.float(), 8)
    return torch.cat([means, means.new_zeros(means.shape[0], 13, *means.shape[-2:])], dim=1)


def decode(z):
    return z[:, :3].repeat_interleave(8, -1).repeat_interleave(8, -2)


def enlarged(image, target):
    """What comes back of the codec: levels [H, W, 3]."""
    whole = torch.from_numpy(np.array(image)).float().movedim(-1, 0)[None]
    size = tuple(-(-side // 8) * 8 for side in target)
    return decode(encode(continued(bicubic(whole, *target), size)))[0, :, : target[0], : target[1]].movedim(
        0, -1
    )


@pytest.fixture(scope="module")
def session(tiny_flux):
    made = {}

    def of(name, options, scale):
        request = Request(sampler=name, model=str(tiny_flux), options=options, steps=4, scale=scale)
        made[name] = made.get(name) or Session(Setup.of(request))
        made[name].setup = Setup.of(request)
        return made[name]

    return of


@pytest.fixture
def generate(session, tmp_path, monkeypatch):
    """What a sampler made of an image, by a codec of means and an analytic field."""

    def run(name, options, scale, image, field):
        session_ = session(name, options, scale)
        image.save(tmp_path / "given.png")
        call = session_.setup.call(Item(prompt="x", image=tmp_path / "given.png"))
        monkeypatch.setattr(Engine, "encode", lambda engine, images, generator=None: encode(images))
        monkeypatch.setattr(Engine, "decode", lambda engine, z: decode(z))
        field(call)
        return session_.generate(call)

    return run


SCALES = [((137, 193), 2.0, False), ((137, 193), 1.5, True), ((137, 193), 1.0, False), ((70, 97), 2.9, True)]


def check(found, image, scale, first, atol):
    height, width = round(scale * image.height), round(scale * image.width)
    assert found.image.size == (width, height)
    assert found.record["image"]["enlarged_first"] == first
    expected = enlarged(image, (height, width))
    # where the kernel sees the reflection, and in blocks that lie half beyond the border
    ends = [side - 8 - int(3 * scale) for side in (height, width)]
    apart = (torch.from_numpy(np.array(found.image)).float() - expected).abs()[: ends[0], : ends[1]]
    assert apart.max() <= atol


@pytest.mark.parametrize(("size", "scale", "first"), SCALES)
@pytest.mark.parametrize("name", OPTIONS)
def test_without_noise_the_straight_field_gives_the_enlargement_back(
    name, size, scale, first, generate, backbone, monkeypatch
):
    """Where noise is 0, x = (1 - sigma) x* all along, and the velocity is -x*: known at every place alone, so
    that windows and patches of any kind know it too."""

    def zeros(noise, batch, size):
        return torch.zeros(batch, 16, size[0] // 8, size[1] // 8)

    def field(call):
        monkeypatch.setattr(Noise, "draw", zeros)
        backbone(lambda tokens, sigma, *_: -tokens / (1 - sigma))

    image = waves(*size)
    found = generate(name, OPTIONS[name], scale, image, field)
    check(found, image, scale, first and name != "patch-cascade", 1.5)


@pytest.mark.parametrize(("size", "scale", "first"), SCALES[:2])
def test_imax_from_noise_gives_the_enlargement_back(size, scale, first, generate, monkeypatch):
    image = waves(*size)

    def field(call):
        target = encode(bicubic(2 * call.given.padded(call.fit) - 1, *call.fit.made))

        @contextlib.contextmanager
        def network(engine, stage, call=None, alone=None):
            yield lambda z, sigma, step, conditions: (z - target) / sigma

        monkeypatch.setattr(Engine, "network", network)

    check(generate("imax", FROM_NOISE["imax"], scale, image, field), image, scale, first, 1.5)


def test_demofusion_gives_an_image_back_where_all_its_paths_lead_there(generate, monkeypatch):
    """Its stages are enlarged as latents and brought to the base's mean and deviation: nearly the image,
    whose waves are longer here."""
    coarse = waves(35, 49).resize((196, 140), Image.Resampling.BICUBIC)

    def field(call):
        handed = 2 * call.given.padded(call.fit) - 1

        def towards(z, sigma, step, conditions):
            return (z - encode(bicubic(handed, 8 * z.shape[-2], 8 * z.shape[-1]))) / sigma

        monkeypatch.setattr(demofusion, "_jittered_windows", lambda *_: towards)
        monkeypatch.setattr(demofusion, "_sub_grids", lambda *_: towards)

    found = generate("demofusion", FROM_NOISE["demofusion"], 2.0, coarse, field)
    check(found, coarse, 2.0, False, 12)
