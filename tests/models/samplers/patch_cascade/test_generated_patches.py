"""The images of the patch cascade: they follow target and anchors, and show hardly a seam."""

import pytest
import torch

from uhr.models.ops import flow, latents
from uhr.models.ops.filters import bicubic
from uhr.models.ops.patches.grid import Canvas, feather
from uhr.models.ops.patches.seams import seam_strength
from uhr.models.samplers import patch_cascade
from uhr.models.samplers.core.engine import Engine
from uhr.models.vae import codec


def lead(cascade, backbone, targets):
    """Give the pipeline the straight field to targets(box) [1, 16, h, w] on every patch."""
    count = 0

    def velocity(tokens, label, condition, branch):
        nonlocal count
        stage = cascade.last_run.stages[-1]
        box = stage.boxes[count // stage.steps]
        sigma = stage.sigmas[count % stage.steps]
        assert label == stage.labels[count % stage.steps]
        count += 1
        return (tokens - latents.pack(targets(box))) / sigma

    backbone(velocity)


@pytest.mark.parametrize(
    ("schedule", "shared_noise"),
    [
        *((name, True) for name in ("warped-labels", "warped-grid", "uniform", "logarithmic", "cosine")),
        # the noise of a patch is drawn in the same way whatever its levels are
        ("warped-labels", False),
    ],
)
def test_with_a_straight_field_the_target_comes_back_through_the_blending(
    cascade, sample, backbone, monkeypatch, schedule, shared_noise, image, seeded
):
    target = torch.randn(1, 16, 24, 30, generator=seeded(5))

    def decode(engine, z):
        # a decoder that knows no neighbours: cuts of the target decode to cuts of its image
        return z[:, :3].repeat_interleave(8, -1).repeat_interleave(8, -2)

    monkeypatch.setattr(Engine, "decode", decode)
    lead(
        cascade,
        backbone,
        lambda box: target[..., box.top // 8 : box.bottom // 8, box.left // 8 : box.right // 8],
    )
    found = sample(
        image=image(128, 160), scale=1.5, schedule=schedule, shared_noise=shared_noise, gamma=0.6,
        num_inference_steps=4, output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close(found, (decode(None, target) / 2 + 0.5).clamp(0, 1), atol=2e-5, rtol=0)


def test_an_image_comes_back_as_its_vae_has_it_where_the_field_leads_to_it(
    cascade, sample, backbone, monkeypatch, image
):
    """At the same size, gamma 0.8: artifact suppression that finds nothing to fix."""
    given = image(192, 256)
    encoded = {}

    def encode(engine, images, generator=None, encode=Engine.encode):
        encoded[len(encoded)] = encode(engine, images, generator)
        return encoded[len(encoded) - 1]

    monkeypatch.setattr(Engine, "encode", encode)
    lead(cascade, backbone, lambda box: encoded[cascade.last_run.stages[-1].boxes.index(box)])
    found = sample(image=given, scale=1, gamma=0.8, output_type="pt").images
    torch.testing.assert_close(found, through_vae(cascade, 2 * given - 1), atol=2e-5, rtol=0)


def through_vae(cascade, enlarged):
    """Every patch encoded and decoded, and blended at once, in [0, 1]."""
    stage, (height, width) = cascade.last_run.stages[-1], enlarged.shape[-2:]
    canvas = Canvas(1, 3, height, width)
    for box in stage.boxes:
        patch = codec.decode(
            cascade.vae,
            latents.normalisation(cascade.vae).to_model(codec.moments(cascade.vae, box.crop(enlarged))[0]),
        )
        canvas.add(box, patch, feather(box, height, width, stage.overlap))
    return (canvas.result() / 2 + 0.5).clamp(0, 1)


def test_as_gamma_goes_to_zero_the_anchor_is_left(cascade, sample, image):
    given = image(128, 128)
    faithful = sample(image=given, scale=1.5, gamma=1e-5, output_type="pt").images
    expected = through_vae(cascade, bicubic(2 * given - 1, 192, 192))
    torch.testing.assert_close(faithful, expected, atol=2e-4, rtol=0)
    distances = [
        (sample(image=given, scale=1.5, gamma=gamma, output_type="pt").images - expected).abs().mean()
        for gamma in (0.3, 0.8)
    ]
    assert 1e-3 < distances[0] < distances[1]


@pytest.mark.parametrize("schedule", ["warped-labels", "warped-grid"])
def test_a_patch_begins_between_its_anchor_and_its_cut_of_the_noise_at_the_first_level(
    cascade, sample, backbone_calls, schedule, image, seeded, engine_of
):
    """Equation 5; on the warped grid the first level is the warped one, and gamma what it is warped from."""
    given = image()
    sample(image=given, scale=1.5, gamma=0.6, schedule=schedule)
    stage, engine = cascade.last_run.stages[-1], engine_of(cascade)
    assert (stage.sigmas[0] == pytest.approx(0.6)) == (schedule == "warped-labels")
    enlarged, noise = bicubic(2 * given - 1, 192, 192), torch.randn(1, 16, 24, 24, generator=seeded())
    for box, call in zip(stage.boxes, backbone_calls[::2], strict=True):
        cut = noise[..., box.top // 8 : box.bottom // 8, box.left // 8 : box.right // 8]
        start = flow.interpolate(engine.encode(box.crop(enlarged)), cut, stage.sigmas[0])
        torch.testing.assert_close(call["hidden_states"], latents.pack(start), atol=1e-4, rtol=0)


def raw_seams(cascade, sample, given, monkeypatch, **more):
    """(seams of the patches laid edge to edge in the middle of their overlaps, those of the image)."""
    patches = []
    denoised = patch_cascade._denoised
    with monkeypatch.context() as patched:
        patched.setattr(patch_cascade, "_denoised", lambda *a: patches.append(denoised(*a)) or patches[-1])
        found = sample(image=given, scale=2, num_inference_steps=4, output_type="pt", **more).images
    boxes = cascade.last_run.stages[-1].boxes
    middles = {b.top + b.height // 2: b for b in boxes}, {b.left + b.width // 2: b for b in boxes}
    rows, columns = (torch.tensor(sorted(m)) for m in middles)
    owner = [(torch.arange(256)[:, None] - places).abs().argmin(dim=1) for places in (rows, columns)]
    laid, cells = torch.zeros(1, 3, 256, 256), []
    for box, patch in zip(boxes, patches, strict=True):
        down = (rows[owner[0]] == box.top + box.height // 2).nonzero().flatten()
        across = (columns[owner[1]] == box.left + box.width // 2).nonzero().flatten()
        cell = type(box)(int(down[0]), int(across[0]), len(down), len(across))
        cell.crop(laid).copy_(
            type(box)(cell.top - box.top, cell.left - box.left, cell.height, cell.width).crop(patch)
        )
        cells.append(cell)
    return seam_strength(laid, cells), seam_strength(found, cells)


@pytest.mark.parametrize("gamma", [0.4, 0.8])
def test_one_noise_for_all_patches_makes_seams_weaker_and_the_feather_hides_what_is_left(
    cascade, sample, monkeypatch, image, gamma
):
    """Gradients across the borders over those next to them; 1 is no seam."""
    shared, blended = raw_seams(cascade, sample, image(), monkeypatch, gamma=gamma)
    own, _ = raw_seams(cascade, sample, image(), monkeypatch, gamma=gamma, shared_noise=False)
    assert own > 1.4
    assert abs(shared - 1) < 0.4 * (own - 1)
    assert 0.75 < blended < 1.1
