"""Sizes, outputs and errors of the patch cascade, and its command."""

import numpy as np
import pytest
import torch
from PIL import Image

from uhr.base.errors import UserError
from uhr.models.ops import latents
from uhr.models.ops.filters import bicubic
from uhr.models.samplers.core.engine import Engine

IMAGE = torch.zeros(1, 3, 128, 128)


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        ((97, 130), 1.37, (133, 178)),
        ((131, 129), 1, (131, 129)),
        ((150, 40), 1.5, (225, 60)),
        ((33, 70), 4, (132, 280)),
    ],
)
def test_an_image_of_any_size_comes_back_at_exactly_its_size_times_the_scale(
    sample, monkeypatch, size, scale, expected, image
):
    given = image(*size)
    (small,) = sample(image=given, scale=scale, num_inference_steps=1).images
    assert small.size == expected[::-1]
    # a codec that keeps what it is given, and a field that moves nothing: the enlargement itself
    kept = []

    def encode(engine, images, generator=None):
        kept.append(images)
        return torch.zeros(len(images), 16, images.shape[-2] // 8, images.shape[-1] // 8)

    monkeypatch.setattr(Engine, "encode", encode)
    monkeypatch.setattr(Engine, "decode", lambda engine, z: kept[-1])
    found = sample(image=given, scale=scale, num_inference_steps=1, output_type="pt").images
    torch.testing.assert_close(found, bicubic(given, *expected).clamp(0, 1), atol=1e-5, rtol=0)


def test_a_size_may_replace_the_scale_and_4_is_the_scale_by_default(sample, image):
    assert sample(image=image(100, 128), height=201, width=257, num_inference_steps=1).images[0].size == (
        257,
        201,
    )
    assert sample(image=image(40, 48), num_inference_steps=1).images[0].size == (192, 160)


def test_every_output_type_comes_out(sample):
    levels = torch.from_numpy(np.asarray(sample().images[0]).copy())
    (array,) = sample(output_type="np", return_dict=False)
    tensor = sample(output_type="pt").images
    assert (array.shape, tuple(tensor.shape)) == ((1, 192, 192, 3), (1, 3, 192, 192))
    assert torch.equal((tensor[0] * 255).round().byte().movedim(0, -1), levels)
    assert np.allclose(array[0], tensor[0].movedim(0, -1))


def test_latents_are_those_of_the_finished_image(cascade, sample, monkeypatch, image, engine_of):
    seen = []
    encode = Engine.encode
    monkeypatch.setattr(Engine, "encode", lambda engine, x: seen.append(x) or encode(engine, x))
    output = sample(output_type="latent", return_stages=True)
    assert (output.images.shape, output.stages[0].shape) == ((1, 144, 64), (1, 64, 64))
    monkeypatch.undo()
    assert torch.equal(output.images, latents.pack(engine_of(cascade).encode(seen[-1])))
    finished = sample(output_type="pt").images
    assert torch.equal((seen[-1] / 2 + 0.5).clamp(0, 1), finished)
    with pytest.raises(UserError, match="nearest"):
        sample(image=image(100, 90), scale=2, output_type="latent")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"width": 200}, "200x192 cannot be generated: use multiples of 16; nearest 192x192 or 208x192"),
        # not the default size, which is the meaning of None
        ({"width": 0}, "0x192 cannot be generated: use multiples of 16; nearest "),
        (
            {"height": 64, "width": 64},
            "an image of 64x64 is smaller than one patch of 128 px: .* set patch=64",
        ),
        ({"patch": 100}, "patches of 100 px: give a multiple of 16, such as 96"),
        ({"schedule": "warped"}, "patch schedule 'warped'.*warped-grid"),
        ({"alpha": 0.49}, "not monotone for alpha 0.49 and p 2: below 0.4878 it is"),
        ({"gamma": 0.0}, "gamma"),
        ({"overlap": 1.0}, "overlap"),
        ({"gama": 0.3}, "unknown key 'gama'.*gamma"),
        ({"scale": 2}, "scale 2 is given without an image"),
        ({"image": IMAGE, "scale": 0.5}, "would shrink to 64x64"),
        ({"image": IMAGE, "scale": 2, "height": 256, "width": 256}, "both a scale and a size"),
        ({"image": IMAGE, "height": 256, "width": None}, "only one of height and width"),
        ({"image": IMAGE, "height": 256, "width": 512}, "an image of 128x128 does not fit 512x256"),
        ({"image": torch.rand(2, 3, 128, 128), "scale": 1}, "2 images for 1 prompts"),
        ({"true_cfg_scale": 3.0}, "requires a negative prompt"),
        (
            {"image": IMAGE, "scale": 1, "shared_noise": False, "latents": torch.zeros(1, 64, 64)},
            "every patch draws its own noise: set shared_noise",
        ),
    ],
)
def test_what_cannot_be_is_one_clear_line(sample, more, message):
    with pytest.raises(UserError, match=message):
        sample(**more)


def test_the_command_generates_says_that_it_is_unadapted_and_writes_all_of_it_down(
    tiny_flux, tmp_path, capsys
):
    from uhr.cli import main
    from uhr.models.generate.record import read_record

    out = tmp_path / "image.png"
    command = ["sample", "patch-cascade", "--model", str(tiny_flux), "--prompt", "a house", "--out", str(out)]
    assert main([*command, "--set", "base_steps=2", "--set", "gamma=0.3", "--set", "overlap=0"]) == 0
    assert "note: unadapted: no adapter acts on the patches" in capsys.readouterr().out
    record = read_record(out)
    assert Image.open(out).size == (record["width"], record["height"]) == (256, 256)
    assert (record["steps"], record["guidance"], record["model_calls"]) == (4, 3.5, 2 + 4 * 4)
    assert record["options"]["gamma"] == record["details"]["settings"]["gamma"] == 0.3
    base, patches = record["details"]["stages"]
    assert (base["name"], patches["calls_per_step"], patches["patch"]) == ("base", 4, [128, 128])
    assert patches["labels"] == pytest.approx([0.2313, 0.176, 0.1237, 0.0674], abs=6e-5)
    assert record["details"]["notes"][0].startswith("unadapted")
    assert main([*command, "--size", "250x256"]) == 1
    assert "nearest 240x256 or 256x256" in capsys.readouterr().err
