"""What holds for every sampler alike: a new one in the registry joins by itself."""

import contextlib
import copy
import inspect
import json

import numpy as np
import pytest
import torch
from PIL import Image

from uhr.base.errors import UserError
from uhr.models import stages, surgery, zoo
from uhr.models.hr_toolkit import Toolkit
from uhr.models.samplers import SAMPLERS, sampler_class
from uhr.models.vae import tiled

FAMILIES = ("flux1", "flux2")
SIDE = 192
CLASSES = {name: sampler_class(name, "flux1") for name in SAMPLERS}
PICTURES = [name for name, cls in CLASSES.items() if cls.takes_picture]
DENSE = [
    name for name, cls in CLASSES.items() if isinstance(getattr(cls.Options(), "toolkit", None), Toolkit)
]
"""Those that call the backbone above its native size as it is."""

PLAIN = {
    # a blurred estimate is not the field's: next to no blur
    "demofusion": {"blur": 1e-3},
    # the field goes by the true level
    "patch-cascade": {"schedule": "uniform"},
}
"""Options by which a sampler follows nothing but the field and its reference."""


@pytest.fixture(params=SAMPLERS)
def name(request):
    return request.param


@pytest.fixture
def family():
    return "flux1"


@pytest.fixture
def sampler(name, family, made):
    return made(sampler_class(name, family))


@pytest.fixture
def sample(name, sampler, quick, seeded):
    """A short call of the sampler, seed 0; keywords change it."""
    usual = quick(name, type(sampler))
    return lambda prompt="a red house", **more: sampler(prompt, **{**usual, "generator": seeded(), **more})


@pytest.mark.parametrize("family", FAMILIES)
def test_with_a_straight_field_it_returns_its_target(name, sampler, sample, straight, monkeypatch):
    """v = (x - x*) / sigma, x* one value a channel: every picture encodes to x*, and z decodes to its first
    three channels."""
    target, factor, ends = straight(sampler), sampler.vae_scale_factor, []

    def encode(pictures, generator=None):
        rows, columns = pictures.shape[-2] // (2 * factor), pictures.shape[-1] // (2 * factor)
        return sampler.unpack(target(rows * columns), (rows, columns)).expand(len(pictures), -1, -1, -1)

    def decode(z):
        return z[:, :3].repeat_interleave(factor, -1).repeat_interleave(factor, -2)

    monkeypatch.setattr(sampler, "encode", encode)
    monkeypatch.setattr(sampler, "decode", decode)
    found = sample(
        **PLAIN.get(name, {}),
        output_type="pt",
        callback_on_step_end=lambda p, step, time, tensors: ends.append(tensors["latents"]) or {},
    ).images
    torch.testing.assert_close(ends[-1], target(ends[-1].shape[1]), atol=5e-5, rtol=5e-5)
    grid = SIDE // (2 * factor)
    expected = decode(sampler.unpack(target(grid**2), (grid, grid)))
    torch.testing.assert_close(found, (expected / 2 + 0.5).clamp(0, 1), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_of_different_samplers_differ(family, made, quick, seeded):
    found = {}
    for name in SAMPLERS:
        cls = sampler_class(name, family)
        picture = made(cls)("x", **quick(name, cls), generator=seeded(), output_type="pt").images
        assert torch.isfinite(picture).all()
        for other, theirs in found.items():
            assert (picture - theirs).abs().mean() > 1e-2, (name, other)
        found[name] = picture


@pytest.mark.parametrize("family", FAMILIES)
def test_model_calls_are_those_of_the_plan_for_each_branch(name, family, sampler, sample, monkeypatch):
    calls, cls = [], type(sampler)
    forward = sampler.transformer.forward
    monkeypatch.setattr(
        sampler.transformer, "forward", lambda **k: calls.append(len(k["hidden_states"])) or forward(**k)
    )
    for more in ({}, {"negative_prompt": "", "true_cfg_scale": 2.0}):
        calls.clear()
        sample(**more, output_type="latent")
        told = (sampler.guidance_kind, sampler.settings, 3.5, bool(more))
        expected = sum(each.steps * each.calls * cls.branches(*told, each) for each in sampler.stages)
        assert sum(calls) == sampler.model_calls == expected


def test_one_bar_counts_all_calls_of_the_backbone(sampler, sample, monkeypatch):
    bars = []

    class Bar(contextlib.nullcontext):
        def __init__(self, total):
            super().__init__(self)
            self.total, self.done = total, 0
            bars.append(self)

        def update(self, n=1):
            self.done += n

    monkeypatch.setattr(
        "uhr.models.pipelines.DiffusionPipeline.progress_bar", lambda self, _=None, total=None: Bar(total)
    )
    for more in ({}, {"negative_prompt": "", "true_cfg_scale": 2.0}):
        sample(**more, output_type="latent")
        assert [(bar.total, bar.done) for bar in bars] == [(sampler.model_calls, sampler.model_calls)]
        bars.clear()


def test_the_callback_counts_on_through_the_stages_and_may_replace_latents(name, sampler, sample):
    seen = []

    def callback(pipeline, step, timestep, tensors):
        assert pipeline is sampler
        seen.append((step, round(float(timestep), 3), tensors["latents"].shape[0]))
        return {"latents": torch.zeros_like(tensors["latents"])}

    sample(callback_on_step_end=callback, output_type="latent")
    levels = [sigma for each in sampler.stages for sigma in each.sigmas[:-1] * each.rounds]
    assert seen == [(i, round(1000 * sigma, 3), 1) for i, sigma in enumerate(levels)]
    assert len(seen) == stages.total_steps(sampler.stages)
    zeros = sample(callback_on_step_end=callback, generator=None, output_type="pt").images
    assert torch.equal(zeros, sample(callback_on_step_end=callback, generator=None, output_type="pt").images)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_is_bitwise_the_same_picture_and_another_is_not(sample, seeded):
    first, again, other = (np.asarray(sample(generator=seeded(s)).images[0]) for s in (3, 3, 4))
    assert first.shape == (SIDE, SIDE, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_noise_may_be_given_in_place_of_what_is_drawn_first(sampler, sample, seeded):
    drawn = sample(output_type="pt").images
    draw, first = seeded(), sampler.stages[0]
    noise = sampler.pack(sampler.noise(1, *first.size, draw))
    assert torch.equal(sample(latents=noise, generator=draw, output_type="pt").images, drawn)
    with pytest.raises(UserError, match=r"latents of shape \[1, 3, 64\]: give packed noise"):
        sample(latents=noise[:, :3])


def test_it_leaves_torchs_random_state_and_the_models_alone(sampler, sample):
    torch.manual_seed(1)
    expected = torch.rand(2)
    before = {key: value.clone() for key, value in sampler.transformer.state_dict().items()}
    processors, positions = dict(sampler.transformer.attn_processors), sampler.transformer.pos_embed
    torch.manual_seed(1)
    sample(output_type="latent")

    def fail(pipeline, step, timestep, tensors):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sample(callback_on_step_end=fail)
    assert torch.equal(torch.rand(2), expected)
    assert surgery.applied(sampler.transformer) == surgery.applied(sampler.vae) == []
    assert sampler.joint_attention_kwargs is None
    assert sampler.transformer.attn_processors == processors
    assert sampler.transformer.pos_embed is positions
    after = sampler.transformer.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_what_was_on_the_models_is_listed(name, sampler, sample):
    sample(output_type="latent")
    names = [each["surgery"] for each in sampler.details()["surgeries"]]
    assert "exact-tiling" in names
    if name in DENSE:
        assert "rope-ntk" in names
        sample(output_type="latent", toolkit={"ntk": 1, "proportional": False})
        assert [each["surgery"] for each in sampler.surgeries] == ["exact-tiling"]


def test_the_vae_is_tiled_exactly_unless_the_user_tiles_it(sampler, sample, monkeypatch):
    tiles = []
    execute = tiled.execute
    monkeypatch.setattr(tiled, "execute", lambda *args: tiles.append(1) or execute(*args))
    z = torch.randn(1, sampler.vae.config.latent_channels, 32, 32, generator=torch.Generator().manual_seed(1))
    with monkeypatch.context() as patched:
        # so little that a picture of 256 px does not fit as a whole
        patched.setattr("uhr.models.samplers.passes.room_of", lambda pipeline: 6 << 20)
        sampler.begin(stages_end(), None)
        with sampler.exact_vae():
            pieces = sampler.decode(z)
            assert tiles
        with sampler.exact_vae():
            tiles.clear()
            patched.setattr(tiled, "whole_bytes", lambda task: 0)
            whole = sampler.decode(z)
            assert not tiles
    torch.testing.assert_close(pieces, whole, atol=2e-5, rtol=0)
    sampler.vae.enable_tiling()
    try:
        sample(output_type="pt")
    finally:
        sampler.vae.disable_tiling()
    assert not tiles
    assert "exact-tiling" not in {each["surgery"] for each in sampler.surgeries}


def stages_end():
    from uhr.models.pipelines import StepEnd

    return StepEnd()


def test_a_batch_is_its_pictures_made_one_by_one(sample, seeded):
    both = sample(["a", "the sea"], generator=[seeded(1), seeded(2)], output_type="pt").images
    one = sample("a", generator=[seeded(1)], output_type="pt").images
    two = sample("the sea", generator=[seeded(2)], output_type="pt").images
    torch.testing.assert_close(both, torch.cat([one, two]), atol=5e-4, rtol=0)
    four = sample(["a", "b"], num_images_per_prompt=2).images
    assert [picture.size for picture in four] == [(SIDE, SIDE)] * 4


def test_a_negative_prompt_changes_the_picture(sample):
    negative = sample(output_type="pt", negative_prompt="n", true_cfg_scale=3.0).images
    assert not torch.allclose(sample(output_type="pt").images, negative, atol=1e-3)


@pytest.mark.parametrize("name", DENSE, indirect=True)
@pytest.mark.parametrize("part", ["ntk", "proportional", "text_duplication"])
def test_above_the_native_size_each_part_of_the_toolkit_acts(sampler, sample, part):
    usual = type(sampler).Options().toolkit.model_dump()
    changed = {**usual, part: 1 if part == "ntk" else not usual[part]}
    # text is repeated for each whole native tile
    size = {"height": 256, "width": 256, "output_type": "latent"}
    other = sample(**size, toolkit=changed).images
    assert not torch.allclose(sample(**size).images, other, atol=1e-4)


@pytest.mark.parametrize("name", PICTURES, indirect=True)
def test_a_picture_takes_the_place_of_the_base_pass(sampler, sample, seeded):
    pixels = (255 * torch.rand(96, 96, 3, generator=seeded(1))).byte().numpy()
    as_pil = sample(image=Image.fromarray(pixels), output_type="pt").images
    assert len(sampler.stages) == 1
    as_array = sample(image=pixels, output_type="pt").images
    as_tensor = sample(image=torch.from_numpy(pixels).movedim(-1, 0) / 255, output_type="pt").images
    assert torch.equal(as_pil, as_array)
    torch.testing.assert_close(as_tensor, as_pil, atol=1e-4, rtol=1e-4)
    other = sample(image=255 - pixels, output_type="pt").images
    assert not torch.allclose(other, as_pil, atol=1e-3)


@pytest.mark.parametrize("name", PICTURES, indirect=True)
def test_a_scale_is_of_the_pictures_sides(sample):
    picture = torch.rand(3, 128, 96)
    assert sample(image=picture, scale=2, height=None, width=None).images[0].size == (192, 256)
    with pytest.raises(UserError, match="both a scale and a size"):
        sample(image=picture, scale=2)
    with pytest.raises(UserError, match="only one of height and width"):
        sample(image=picture, width=None)


def test_pictures_come_in_any_shape_of_the_units_and_every_output_type(sample):
    picture = sample(height=192, width=320).images[0]
    assert picture.size == (320, 192)
    (array,) = sample(output_type="np", return_dict=False)
    tensor = sample(output_type="pt").images
    assert array.shape == (1, SIDE, SIDE, 3)
    assert np.allclose(array[0], tensor[0].movedim(0, -1))
    with pytest.raises(UserError, match=r"200x192 cannot be made: multiples of \d+; nearest 192x192 or"):
        sample(width=200)


def test_every_stage_before_the_last_is_shown_on_request(sampler, sample):
    output = sample(return_stages=True)
    shown = [pictures[0].size for pictures in output.stages]
    assert shown == [(each.width, each.height) for each in sampler.stages[:-1]]
    assert sample().stages is None
    images, again = sample(return_stages=True, return_dict=False)
    assert (images[0].size, len(again)) == ((SIDE, SIDE), len(shown))


def test_an_interrupted_call_hands_over_what_it_reached(sampler, sample):
    def callback(pipeline, step, timestep, tensors):
        pipeline._interrupt = step == 1
        return {}

    (picture,) = sample(callback_on_step_end=callback).images
    last = sampler.stages[-1]
    assert picture.size == (last.width, last.height)
    assert sampler.model_calls <= 2 * max(each.calls for each in sampler.stages)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"strenght": 1}, "unknown key 'strenght'"),
        ({"prompt": None}, "no prompt is given"),
        ({"guidance_scale": None}, "wants a guidance scale"),
        ({"negative_prompt": "y"}, "no effect at true_cfg_scale 1"),
        ({"true_cfg_scale": 3.0}, "wants a negative prompt"),
        ({"scale": 2}, "scale 2 is given without a picture"),
        ({"callback_on_step_end_tensor_inputs": ["latent"]}, "asks for latent"),
    ],
)
def test_what_cannot_be_is_one_clear_line(sample, more, message):
    with pytest.raises(UserError, match=message):
        sample(**more)


@pytest.mark.parametrize("name", PICTURES, indirect=True)
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(3, 64, 128), "a picture of 128x64 does not fit 192x192"),
        (torch.rand(2, 3, 64, 64), "2 pictures for 1 prompts"),
        ([torch.rand(3, 64, 64), torch.rand(3, 32, 32)], "differ in size"),
        (torch.rand(1, 64, 64), "give RGB"),
    ],
)
def test_a_picture_that_cannot_be_is_one_clear_line(sample, image, message):
    with pytest.raises(UserError, match=message):
        sample(image=image)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in PICTURES], indirect=True)
def test_a_picture_where_none_is_taken_is_refused(sample):
    with pytest.raises(UserError, match="no base pass that a picture"):
        sample(image=torch.rand(3, 128, 128))


@pytest.mark.parametrize("family", FAMILIES)
def test_preflight_and_the_call_make_the_same_plan(name, family, sampler, sample, quick):
    cls, spec = type(sampler), zoo.get(f"tiny-{family}")
    given = quick(name, cls)
    options = cls.Options(**{key: value for key, value in given.items() if key in cls.Options.model_fields})
    told = (spec, options, SIDE, SIDE, given["num_inference_steps"])
    cls.preflight(*told, False)
    sample(output_type="latent")
    assert cls.all_steps(*told) == stages.total_steps(sampler.stages)
    assert [each.describe() for each in cls.planned(*told)] == [
        {**each.describe(), "sigmas": pytest.approx(each.sigmas)} for each in sampler.stages
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_call_that_names_neither_size_nor_steps_takes_the_samplers_own(
    name, family, sampler, sample, monkeypatch
):
    cls, spec = type(sampler), zoo.get(f"tiny-{family}")
    monkeypatch.setattr(sampler, "velocity", lambda tokens, *_, **__: torch.zeros_like(tokens))
    sample(height=None, width=None, num_inference_steps=None, output_type="latent")
    assert sampler.stages[-1].size == cls.default_size(spec)
    options = sampler.settings
    plan = cls.planned(spec, options, *cls.default_size(spec), cls.default_steps(spec))
    assert [each.steps for each in plan] == [each.steps for each in sampler.stages]


def test_the_record_says_what_was_run_with_every_value(name, sampler, sample):
    sample(output_type="latent")
    details = json.loads(json.dumps(sampler.details()))
    assert [each["width"] for each in details["stages"]] == [each.width for each in sampler.stages]
    assert sum((len(s["sigmas"]) - 1) * s["calls_per_step"] for s in details["stages"]) == sampler.model_calls
    assert details["settings"].keys() == type(sampler).Options.model_fields.keys()
    assert surgery.from_record(details["surgeries"])


def test_beside_a_bfloat16_backbone_latents_ids_and_levels_stay_float32(sampler, sample, monkeypatch):
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


def test_its_signature_shows_diffusers_arguments_and_its_own_options(name):
    cls = CLASSES[name]
    shown = inspect.signature(cls.__call__).parameters
    stock = inspect.signature(next(c for c in cls.__mro__ if c.__module__.startswith("diffusers.")).__call__)
    ip_adapter = {key for key in stock.parameters if "ip_adapter" in key}
    # `sigmas` bypass a schedule, which only Euler has no other use for
    assert set(stock.parameters) - ip_adapter - {"sigmas"} <= set(shown)
    for key, field in cls.Options.model_fields.items():
        assert shown[key].default == field.get_default(call_default_factory=True)
        assert key in cls.__call__.__doc__


def test_it_is_made_from_the_stock_pipelines_parts(name, stock):
    pipeline = CLASSES[name].from_pipe(stock)
    assert pipeline.transformer is stock.transformer
    assert pipeline._optional_components == stock._optional_components
