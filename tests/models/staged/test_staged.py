"""What holds for every staged sampler alike."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image

from uhr.base.errors import UserError
from uhr.models import stages, surgery, zoo
from uhr.models.samplers import sampler_class

SHORT = {
    "sdedit": {"strength": 0.5, "base_steps": 2, "num_inference_steps": 4},
    "multidiffusion": {"strength": 0.5, "base_steps": 2, "num_inference_steps": 4},
    "demofusion": {"num_inference_steps": 2},
    "imax": {},
    "hiflow": {},
}
NAMES = tuple(SHORT)
DENSE = ("sdedit", "imax", "hiflow")
"""Those that call the backbone above its native size."""


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def sampler(name, made):
    return made(sampler_class(name, "flux1"))


@pytest.fixture
def sample(name, sampler, call, seeded):
    """A short call of the sampler, seed 0; keywords change it."""
    return lambda prompt="a red house", **more: sampler(
        prompt, **{**call, **SHORT[name], "generator": seeded(), **more}
    )


def test_with_a_straight_field_it_returns_its_target(name, sampler, sample, straight, monkeypatch):
    """The reference of those that have one is made the target, too."""
    target = straight(sampler)

    def encode(pictures, generator=None):
        rows, columns = pictures.shape[-2] // 16, pictures.shape[-1] // 16
        return sampler.unpack(target(rows * columns), (rows, columns))

    monkeypatch.setattr(sampler, "encode", encode)
    # DemoFusion's blurred estimate is not the field's: next to no blur
    more = {"blur": 1e-3} if name == "demofusion" else {}
    found = sample(**more, output_type="latent").images
    torch.testing.assert_close(found, target(256), atol=2e-5, rtol=2e-5)


def test_model_calls_are_those_of_the_plan_for_each_branch(sampler, sample, monkeypatch):
    calls = []
    forward = sampler.transformer.forward
    monkeypatch.setattr(sampler.transformer, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    for more, branches in (({}, 1), ({"negative_prompt": "", "true_cfg_scale": 2.0}, 2)):
        calls.clear()
        sample(**more, output_type="latent")
        assert len(calls) == sampler.model_calls == stages.total_calls(sampler.stages, branches)


def test_one_bar_counts_all_calls_of_the_backbone(sampler, sample, monkeypatch):
    bars = []

    class Bar:
        def __init__(self, total):
            self.total, self.done = total, 0
            bars.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, n=1):
            self.done += n

    monkeypatch.setattr(
        "uhr.models.pipelines.DiffusionPipeline.progress_bar", lambda self, _=None, total=None: Bar(total)
    )
    sample(output_type="latent")
    assert [(bar.total, bar.done) for bar in bars] == [(sampler.model_calls, sampler.model_calls)]


def test_the_callback_counts_on_through_the_stages_and_may_replace_latents(sampler, sample):
    sample(output_type="latent")
    seen, total = [], sum(stage.steps for stage in sampler.stages)

    def callback(pipeline, step, timestep, tensors):
        seen.append((step, round(float(timestep), 3)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == total - 1 else {}

    found = sample(callback_on_step_end=callback, output_type="latent").images
    levels = [sigma for stage in sampler.stages for sigma in stage.sigmas[:-1]]
    assert seen == [(i, round(1000 * sigma, 3)) for i, sigma in enumerate(levels)]
    assert found.std() < 1e-6


def test_the_same_seed_is_bitwise_the_same_picture_and_another_is_not(sample, seeded):
    first, again, other = (np.asarray(sample(generator=seeded(s)).images[0]) for s in (3, 3, 4))
    assert first.shape == (256, 256, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_it_leaves_torchs_random_state_and_the_models_alone(sampler, sample):
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    sample(output_type="latent")
    assert torch.equal(torch.rand(2), expected)
    assert surgery.applied(sampler.transformer) == surgery.applied(sampler.vae) == []
    assert sampler.joint_attention_kwargs is None


def test_what_was_on_the_models_is_listed(name, sampler, sample):
    sample(output_type="latent")
    names = [each["surgery"] for each in sampler.surgeries]
    if name in DENSE:
        assert {"exact-tiling", "rope-ntk"} < set(names)
        sample(output_type="latent", toolkit={"ntk": 1, "proportional": False})
        names = [each["surgery"] for each in sampler.surgeries]
    assert names == ["exact-tiling"]


def test_a_batch_is_its_pictures_made_one_by_one(sample, seeded):
    both = sample(["a", "the sea"], generator=[seeded(1), seeded(2)], output_type="latent").images
    one = sample("a", generator=[seeded(1)], output_type="latent").images
    two = sample("the sea", generator=[seeded(2)], output_type="latent").images
    torch.testing.assert_close(both, torch.cat([one, two]), atol=2e-4, rtol=2e-4)
    four = sample(["a", "b"], num_images_per_prompt=2).images
    assert [picture.size for picture in four] == [(256, 256)] * 4


def test_a_negative_prompt_changes_the_picture(sample):
    negative = sample(output_type="latent", negative_prompt="n", true_cfg_scale=3.0).images
    assert not torch.allclose(sample(output_type="latent").images, negative, atol=1e-3)


@pytest.mark.parametrize("name", DENSE, indirect=True)
@pytest.mark.parametrize("part", ["ntk", "proportional", "text_duplication"])
def test_above_the_native_size_each_part_of_the_toolkit_acts(sampler, sample, part):
    usual = type(sampler).Options().toolkit.model_dump()
    changed = {**usual, part: 1 if part == "ntk" else not usual[part]}
    other = sample(output_type="latent", toolkit=changed).images
    assert not torch.allclose(sample(output_type="latent").images, other, atol=1e-4)


def test_a_picture_takes_the_place_of_the_base_pass(sampler, sample, seeded):
    pixels = (255 * torch.rand(96, 96, 3, generator=seeded(1))).byte().numpy()
    as_pil = sample(image=Image.fromarray(pixels), output_type="latent").images
    assert [stage.name for stage in sampler.stages][:1] == ["256x256"]
    as_array = sample(image=pixels, output_type="latent").images
    as_tensor = sample(image=torch.from_numpy(pixels).movedim(-1, 0) / 255, output_type="latent").images
    assert torch.equal(as_pil, as_array)
    torch.testing.assert_close(as_tensor, as_pil, atol=1e-4, rtol=1e-4)
    other = sample(image=255 - pixels, output_type="latent").images
    assert not torch.allclose(other, as_pil, atol=1e-3)


def test_pictures_come_in_any_shape_of_the_tokens_and_every_output_type(sample):
    picture = sample(height=192, width=320).images[0]
    assert picture.size == (320, 192)
    (array,) = sample(output_type="np", return_dict=False)
    assert array.shape == (1, 256, 256, 3)
    with pytest.raises(UserError, match=r"200x256 cannot be made: multiples of \d+; nearest 192x256 or"):
        sample(width=200)


def test_every_stage_before_the_last_is_shown_on_request(sampler, sample):
    output = sample(return_stages=True)
    shown = [pictures[0].size for pictures in output.stages]
    assert shown == [(stage.width, stage.height) for stage in sampler.stages[:-1]]
    assert sample().stages is None
    images, again = sample(return_stages=True, return_dict=False)
    assert (images[0].size, len(again)) == ((256, 256), len(shown))


def test_an_interrupted_call_hands_over_the_stage_that_it_reached(sampler, sample):
    def callback(pipeline, step, timestep, tensors):
        pipeline._interrupt = step == 1
        return {}

    (picture,) = sample(callback_on_step_end=callback).images
    last = sampler.stages[-1]
    assert picture.size == (last.width, last.height)
    assert sampler.model_calls <= 2 * max(stage.calls for stage in sampler.stages)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"strenght": 1}, "unknown key 'strenght'"),
        ({"negative_prompt": "y"}, "no effect at true_cfg_scale 1"),
        ({"image": torch.rand(3, 64, 128)}, "a picture of 128x64 does not fit 256x256: crop it, or ask for"),
        ({"image": torch.rand(2, 3, 64, 64)}, "2 pictures for 1 prompts"),
        ({"image": [torch.rand(3, 64, 64), torch.rand(3, 32, 32)]}, "differ in size"),
        ({"image": torch.rand(1, 64, 64)}, "give RGB"),
        ({"callback_on_step_end_tensor_inputs": ["latent"]}, "asks for latent"),
    ],
)
def test_what_cannot_be_is_one_clear_line(sample, more, message):
    with pytest.raises(UserError, match=message):
        sample(**more)


def test_preflight_and_the_call_make_the_same_plan(sampler, sample, name):
    cls, spec = type(sampler), zoo.get("tiny-flux1")
    given = dict(SHORT[name])
    steps = given.pop("num_inference_steps", 3)
    options = cls.Options(**given)
    cls.preflight(spec, options, 256, 256, steps, False)
    plan = cls.planned(spec, options, 256, 256, steps)
    sample(output_type="latent")
    for ours, theirs in zip(plan, sampler.stages, strict=True):
        assert (ours.name, ours.size, ours.calls) == (theirs.name, theirs.size, theirs.calls)
        assert ours.sigmas == pytest.approx(theirs.sigmas)


def test_pictures_of_different_samplers_differ(made, call, seeded):
    found = []
    for name, short in SHORT.items():
        pipeline = made(sampler_class(name, "flux1"))
        found.append(pipeline("x", **{**call, **short}, generator=seeded(), output_type="latent").images)
    for i, one in enumerate(found):
        assert not any(torch.allclose(one, other, atol=1e-2) for other in found[:i])


def test_the_record_says_what_was_run_with_every_value(name, sampler, sample):
    sample(output_type="latent")
    details = json.loads(json.dumps(sampler.details()))
    assert [stage["width"] for stage in details["stages"]] == [stage.width for stage in sampler.stages]
    assert sum((len(s["sigmas"]) - 1) * s["calls_per_step"] for s in details["stages"]) == sampler.model_calls
    assert details["surgeries"][0]["surgery"] == "exact-tiling"
    may_be_none = {"guidance_high", "native_size", "shift", "base_steps"}
    assert {key for key, value in details["settings"].items() if value is None} <= may_be_none


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
