"""Properties of every sampler; a new one in the registry is tested without further code.

They are tested on FLUX.1. On FLUX.2 the golden values hold each sampler's latents (`../test_golden.py`), and
`estimate/test_plan_against_runs.py` the calls of the backbone.
"""

import contextlib
import copy

import pytest
import torch

from uhr.models.ops import latents
from uhr.models.samplers import SAMPLERS, options_class
from uhr.models.samplers.core.engine import Engine
from uhr.models.samplers.core.toolkit import Toolkit
from uhr.models.surgery import base as surgery
from uhr.models.vae import tiled

FAMILIES = ("flux1", "flux2")
SIDE = 128
DENSE = [name for name in SAMPLERS if isinstance(getattr(options_class(name)(), "toolkit", None), Toolkit)]
"""Those that call the backbone above its native size as it is."""

PLAIN = {
    # a blurred estimate is not the field's: next to no blur
    "demofusion": {"blur": 1e-3},
    # the field goes by the true level
    "patch-cascade": {"schedule": "uniform"},
}
"""Options by which a sampler follows nothing but the field and its reference."""


@pytest.mark.parametrize("family", FAMILIES)
def test_with_a_straight_field_it_returns_its_target(name, sampler, sample, straight, monkeypatch):
    """v = (x - x*) / sigma, x* one value a channel: every image encodes to x*, and z decodes to its first
    three channels."""
    target, factor, ends = straight(sampler), sampler.facts.vae_factor, []

    def encode(engine, images, generator=None):
        rows, columns = (side // factor for side in images.shape[-2:])
        return latents.unpack(target(rows * columns // 4), rows, columns).expand(len(images), -1, -1, -1)

    def decode(engine, z):
        return z[:, :3].repeat_interleave(factor, -1).repeat_interleave(factor, -2)

    monkeypatch.setattr(Engine, "encode", encode)
    monkeypatch.setattr(Engine, "decode", decode)
    found = sample(
        **PLAIN.get(name, {}),
        output_type="pt",
        callback_on_step_end=lambda p, step, time, tensors: ends.append(tensors["latents"]) or {},
    ).images
    torch.testing.assert_close(ends[-1], target(ends[-1].shape[1]), atol=5e-5, rtol=5e-5)
    side = SIDE // factor
    expected = decode(None, latents.unpack(target(side**2 // 4), side, side))
    torch.testing.assert_close(found, (expected / 2 + 0.5).clamp(0, 1), atol=2e-5, rtol=2e-5)


WHOLE = {
    "euler": {},
    "sdedit": {},
    "multidiffusion": {"strength": 1.0},
    "imax": {"swin": False},
    "hiflow": {"swin": False},
    "ultragen": {"guide": False},
    "ultraflux": {},
}
"""Samplers, and options, in which every call is over an unchanged part of z."""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", WHOLE, indirect=True)
def test_every_part_of_the_image_reaches_its_own_target(
    name, sampler, sample, seeded, backbone, engine_of, monkeypatch
):
    """x* is another at every place: each call's part of the image is known again by its noise, and a window
    that is cut, or put back, where it does not belong leads elsewhere."""
    side, fresh = SIDE // sampler.pixel_multiple, seeded(7)
    noise = engine_of(sampler, fresh).noise.draw(1, (SIDE, SIDE))
    target = torch.randn(noise.shape, generator=fresh)
    away, parts = latents.pack(noise - target).view(side, side, -1), []

    def velocity(tokens, sigma, condition, branch):
        rows, columns = (int(condition.image_ids[:, axis].max()) + 1 for axis in (1, 2))
        path = latents.pack(target + sigma * (noise - target)).view(side, side, -1)
        distance = (path - tokens[0, 0]).abs().amax(-1)
        top, left = divmod(int(distance.argmin()), side)
        assert distance[top, left] < 1e-3
        parts.append((top, left, rows, columns))
        return away[top : top + rows, left : left + columns].reshape(tokens.shape)

    backbone(velocity)
    monkeypatch.setattr(Engine, "encode", lambda engine, images, generator=None: target)
    image = {"image": torch.rand(3, 64, 64)} if sampler.sampler.takes_image else {}
    found = sample(
        **WHOLE[name],
        **({} if name == "multidiffusion" else image),
        latents=latents.pack(noise),
        output_type="latent",
    ).images
    (stage,) = sampler.last_run.stages
    found = latents.unpack(found, 2 * side, 2 * side)
    torch.testing.assert_close(found, target, atol=1e-4, rtol=1e-4)
    assert len(set(parts)) == stage.calls_per_step


def test_images_of_different_samplers_differ(family, usual):
    found = {}
    for name in SAMPLERS:
        image = usual(name, family)
        assert torch.isfinite(image).all()
        for other, theirs in found.items():
            assert (image - theirs).abs().mean() > 1e-2, (name, other)
        found[name] = image


def test_model_calls_are_those_of_the_plan_for_each_branch_and_one_bar_counts_them(
    sampler, sample, monkeypatch
):
    calls, bars = [], []

    class Bar(contextlib.nullcontext):
        def __init__(self, total):
            super().__init__(self)
            self.total, self.done = total, 0
            bars.append(self)

        def update(self, n=1):
            self.done += n

    monkeypatch.setattr(
        "uhr.models.samplers.core.pipelines.base.DiffusionPipeline.progress_bar",
        lambda self, _=None, total=None: Bar(total),
    )
    forward = sampler.transformer.forward
    monkeypatch.setattr(
        sampler.transformer, "forward", lambda **k: calls.append(len(k["hidden_states"])) or forward(**k)
    )
    for more in ({}, {"negative_prompt": "", "true_cfg_scale": 2.0}):
        calls.clear()
        sample(**more, output_type="latent")
        assert sum(calls) == sampler.model_calls == sampler.last_run.plan.model_calls
        assert [(bar.total, bar.done) for bar in bars] == [(sampler.model_calls, sampler.model_calls)]
        bars.clear()


def test_the_callback_counts_steps_over_all_stages_and_may_replace_latents(name, sampler, sample):
    seen = []

    def callback(pipeline, step, timestep, tensors):
        assert pipeline is sampler
        seen.append((step, round(float(timestep), 3), tensors["latents"].shape[0]))
        return {"latents": torch.zeros_like(tensors["latents"])}

    zeros = sample(callback_on_step_end=callback, output_type="pt").images
    levels = [sigma for each in sampler.last_run.stages for sigma in each.sigmas[:-1] * each.rounds]
    assert seen == [(i, round(1000 * sigma, 3), 1) for i, sigma in enumerate(levels)]
    assert len(seen) == sampler.last_run.plan.steps
    # latents that are replaced do not depend on the seed any more
    assert torch.equal(zeros, sample(callback_on_step_end=callback, generator=None, output_type="pt").images)


def test_the_same_seed_is_bitwise_the_same_image_and_another_is_not(name, family, usual, sample, seeded):
    again, other = (sample(generator=seeded(seed), output_type="pt").images for seed in (0, 4))
    assert again.shape == (1, 3, SIDE, SIDE)
    assert torch.equal(usual(name, family), again)
    assert not torch.equal(again, other)


def test_it_does_not_change_torchs_random_state_or_the_models(sampler, sample):
    torch.manual_seed(1)
    expected = torch.rand(2)
    before = {key: value.clone() for key, value in sampler.transformer.state_dict().items()}
    processors, positions = dict(sampler.transformer.attn_processors), sampler.transformer.pos_embed
    torch.manual_seed(1)
    sample(output_type="latent")

    def fail(pipeline, step, timestep, tensors):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sample(callback_on_step_end=fail, output_type="latent")
    assert torch.equal(torch.rand(2), expected)
    assert surgery.applied(sampler.transformer) == surgery.applied(sampler.vae) == []
    assert sampler.joint_attention_kwargs is None
    assert sampler.transformer.attn_processors == processors
    assert sampler.transformer.pos_embed is positions
    after = sampler.transformer.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_surgeries_are_recorded(name, sampler, sample):
    sample(output_type="latent")
    names = [each["surgery"] for each in sampler.details()["surgeries"]]
    assert "exact-tiling" in names
    if name in DENSE:
        assert "rope-ntk" in names
        sample(output_type="latent", toolkit={"ntk": 1, "proportional": False})
        assert [each["surgery"] for each in sampler.last_run.surgeries] == ["exact-tiling"]


@pytest.mark.parametrize("name", ["euler", "ultraflux"], indirect=True)
def test_an_image_that_does_not_fit_is_decoded_in_tiles_and_is_the_same(sampler, engine_of, monkeypatch):
    """With both VAEs: a sampler's own has another factor."""
    tiles = []
    execute = tiled.execute
    monkeypatch.setattr(tiled, "execute", lambda *args: tiles.append(1) or execute(*args))
    z = torch.randn(1, sampler.vae.config.latent_channels, 32, 32, generator=torch.Generator().manual_seed(1))
    engine = engine_of(sampler)
    # so little that an image of 256 px does not fit as a whole
    with engine.exact_vae(memory=6 << 20):
        pieces = engine.decode(z)
        assert tiles
    with engine.exact_vae(memory=6 << 20):
        tiles.clear()
        monkeypatch.setattr(tiled, "untiled_bytes", lambda task: 0)
        whole = engine.decode(z)
        assert not tiles
    torch.testing.assert_close(pieces, whole, atol=2e-5, rtol=0)


def test_the_users_own_tiling_of_the_vae_is_left_alone(sampler, sample, monkeypatch):
    tiles = []
    execute = tiled.execute
    monkeypatch.setattr(tiled, "execute", lambda *args: tiles.append(1) or execute(*args))
    sampler.vae.enable_tiling()
    try:
        sample(output_type="pt")
    finally:
        sampler.vae.disable_tiling()
    assert not tiles
    assert "exact-tiling" not in {each["surgery"] for each in sampler.last_run.surgeries}


def test_a_batch_is_its_images_generated_one_by_one(name, family, usual, sample, seeded):
    both = sample(["a red house", "the sea"], generator=[seeded(), seeded(2)], output_type="pt").images
    two = sample("the sea", generator=[seeded(2)], output_type="pt").images
    torch.testing.assert_close(both, torch.cat([usual(name, family), two]), atol=5e-4, rtol=0)
    assert len(sample("a", num_images_per_prompt=2, output_type="latent").images) == 2


def test_a_negative_prompt_changes_the_image(name, family, usual, sample):
    negative = sample(output_type="pt", negative_prompt="n", true_cfg_scale=3.0).images
    assert not torch.allclose(usual(name, family), negative, atol=1e-3)


@pytest.mark.parametrize("name", DENSE, indirect=True)
@pytest.mark.parametrize("part", ["ntk", "proportional", "text_duplication"])
def test_above_the_native_size_each_part_of_the_toolkit_acts(sampler, sample, part):
    usual = type(sampler).Options().toolkit.model_dump()
    changed = {**usual, part: 1 if part == "ntk" else not usual[part]}
    # text is repeated for each whole native tile
    size = {"height": 192, "width": 192, "output_type": "latent"}
    other = sample(**size, toolkit=changed).images
    assert not torch.allclose(sample(**size).images, other, atol=1e-4)


def test_an_interrupted_call_returns_the_image_that_it_reached(sampler, sample):
    def callback(pipeline, step, timestep, tensors):
        pipeline._interrupt = step == 1
        return {}

    (image,) = sample(callback_on_step_end=callback).images
    run = sampler.last_run
    assert image.size == (run.stages[-1].width, run.stages[-1].height)
    assert sampler.model_calls <= 2 * max(each.calls_per_step for each in run.stages)


def test_next_to_a_bfloat16_backbone_latents_ids_and_levels_stay_float32(sampler, sample, monkeypatch):
    backbone, seen = copy.deepcopy(sampler.transformer).to(torch.bfloat16), []
    forward = backbone.forward
    backbone.forward = lambda **arguments: seen.append(arguments) or forward(**arguments)
    monkeypatch.setattr(sampler, "transformer", backbone)
    found = sample(output_type="latent").images
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    for arguments in seen:
        assert {arguments[key].dtype for key in ("img_ids", "txt_ids", "timestep")} == {torch.float32}
        assert arguments["hidden_states"].dtype == torch.bfloat16
