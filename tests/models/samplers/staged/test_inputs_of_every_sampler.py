"""What every sampler alike takes, refuses and hands over: a new one in the registry joins by itself."""

import inspect
import json

import numpy as np
import pytest
import torch
from PIL import Image

from uhr.base.errors import UserError
from uhr.models import zoo
from uhr.models.ops import latents
from uhr.models.samplers import SAMPLERS, find_sampler, sampler_class
from uhr.models.samplers.core.sampler import plan_of_spec
from uhr.models.surgery import base as surgery

FAMILIES = ("flux1", "flux2")
SIDE = 128
CLASSES = {name: sampler_class(name, "flux1") for name in SAMPLERS}
IMAGES = [name for name in SAMPLERS if find_sampler(name).takes_image]


def test_noise_may_be_given_in_place_of_what_is_drawn_first(sampler, sample, seeded, engine_of):
    drawn = sample(output_type="pt").images
    draw, first = seeded(), sampler.last_run.stages[0]
    noise = latents.pack(engine_of(sampler, draw).noise.draw(1, first.size))
    assert torch.equal(sample(latents=noise, generator=draw, output_type="pt").images, drawn)
    with pytest.raises(UserError, match=r"latents of shape \[1, 3, 64\] do not fit: give packed noise"):
        sample(latents=noise[:, :3])


@pytest.mark.parametrize("name", IMAGES, indirect=True)
def test_an_image_takes_the_place_of_the_base_pass(sampler, sample, seeded):
    """In whatever form it is given: `../test_given_images.py`."""
    pixels = (255 * torch.rand(64, 64, 3, generator=seeded(1))).byte().numpy()
    found = sample(image=Image.fromarray(pixels), output_type="latent").images
    assert len(sampler.last_run.stages) == 1
    other = sample(image=255 - pixels, output_type="latent").images
    assert not torch.allclose(other, found, atol=1e-3)


@pytest.mark.parametrize("name", IMAGES, indirect=True)
def test_with_an_image_the_samplers_own_options_and_steps_suffice(sampler, backbone):
    backbone(lambda tokens, *_: torch.zeros_like(tokens))
    opaque = Image.new("RGBA", (96, 96), (90, 120, 40, 255))
    size = sampler("x", image=opaque, height=192, width=192, max_sequence_length=16).images[0].size
    assert size == (192, 192)


@pytest.mark.parametrize("name", IMAGES, indirect=True)
def test_with_an_image_the_calls_guidance_is_what_the_backbone_gets(sampler, sample, backbone_calls):
    def embedded():
        return {condition.guidance.unique().item() for condition in backbone_calls}

    images = []
    for guidance in (2.0, 9.0):
        backbone_calls.clear()
        image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1))
        images.append(sample(image=image, guidance_scale=guidance, output_type="latent").images)
        assert embedded() == {guidance}
        assert [each["guidance"] for each in sampler.details()["stages"]] == [guidance]
    assert not torch.allclose(*images, atol=1e-4)
    # and with a base pass each stage has, and the record lists, its own
    backbone_calls.clear()
    sample(guidance_scale=2.0, output_type="latent")
    assert {each["guidance"] for each in sampler.details()["stages"]} == embedded()


@pytest.mark.parametrize("name", IMAGES, indirect=True)
def test_a_scale_is_of_the_images_sides(sample):
    image = torch.rand(3, 64, 96)
    assert sample(image=image, scale=2, height=None, width=None).images[0].size == (192, 128)
    with pytest.raises(UserError, match="both a scale and a size"):
        sample(image=image, scale=2)
    with pytest.raises(UserError, match="only one of height and width"):
        sample(image=image, width=None)


def test_any_shape_of_whole_units_and_every_output_type_are_generated(name, family, usual, sample):
    output = sample(height=128, width=192)
    assert output.images[0].size == (192, 128)
    assert output.stages is None
    (array,) = sample(output_type="np", return_dict=False)
    assert array.shape == (1, SIDE, SIDE, 3)
    assert np.allclose(array[0], usual(name, family)[0].movedim(0, -1))
    with pytest.raises(
        UserError, match=r"130x128 cannot be generated: use multiples of \d+; nearest 128x128 or"
    ):
        sample(width=130)


def test_every_stage_before_the_last_is_returned_on_request(sampler, sample):
    images, stages = sample(return_stages=True, return_dict=False)
    shown = [each[0].size for each in stages]
    assert shown == [(each.width, each.height) for each in sampler.last_run.stages[:-1]]
    assert images[0].size == (SIDE, SIDE)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"strenght": 1}, "unknown key 'strenght'"),
        ({"prompt": None}, "no prompt is given"),
        ({"prompt": []}, "an empty list of prompts is given: give one or more"),
        ({"prompt": ["a", "b"], "generator": [torch.Generator()]}, "1 generators for 2 images: give one"),
        ({"generator": []}, "0 generators for 1 images"),
        ({"negative_prompt": "y"}, "no effect at true_cfg_scale 1"),
        ({"true_cfg_scale": 3.0}, "requires a negative prompt"),
        ({"guidance_scale": float("nan")}, "guidance nan is invalid: give a finite number"),
        ({"guidance_scale": float("inf")}, "guidance inf is invalid: give a finite number"),
        ({"scale": 2}, "scale 2 is given without an image"),
        ({"callback_on_step_end_tensor_inputs": ["latent"]}, "requests unknown tensors: latent"),
    ],
)
def test_what_cannot_be_is_one_clear_line(sample, more, message):
    with pytest.raises(UserError, match=message):
        sample(**more)


@pytest.mark.parametrize("output_type", ["pil", "latent"])
def test_what_is_no_number_is_an_error_that_names_the_stage_and_no_black_image(sample, output_type, backbone):
    backbone(lambda tokens, *_: torch.full_like(tokens, torch.nan))
    with pytest.raises(UserError, match=r"^stage (base|patches|\d+x\d+): its latents are not finite"):
        sample(output_type=output_type)


def test_what_the_vae_makes_of_half_precision_is_no_black_image_either(sample, monkeypatch):
    monkeypatch.setattr("uhr.models.vae.codec.decode", lambda vae, z: torch.full((1, 3, 8, 8), torch.inf))
    with pytest.raises(UserError, match=r"^decoding: the pixels of the VAE are not finite"):
        sample()


@pytest.mark.parametrize("name", IMAGES, indirect=True)
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(3, 32, 64), "an image of 64x32 does not fit 128x128"),
        (torch.rand(2, 3, 64, 64), "2 images for 1 prompts"),
        ([torch.rand(3, 64, 64), torch.rand(3, 32, 32)], "differ in size"),
        (torch.rand(1, 64, 64), "give RGB"),
        ([], "the list of images is empty"),
        (
            Image.new("RGBA", (64, 64), (1, 2, 3, 254)),
            r'has transparency, .*: flatten it: .convert\("RGB"\)',
        ),
    ],
)
def test_an_image_that_cannot_be_is_one_clear_line(sample, image, message):
    with pytest.raises(UserError, match=message):
        sample(image=image)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in IMAGES], indirect=True)
def test_an_image_where_none_is_taken_is_rejected(sample):
    with pytest.raises(UserError, match="no base pass that an image"):
        sample(image=torch.rand(3, 128, 128))


def test_the_plan_without_weights_is_the_plan_of_the_call_which_makes_it_once(
    name, family, sampler, sample, quick, monkeypatch
):
    given = quick(name, type(sampler))
    fields = sampler.Options.model_fields
    options = sampler.Options(**{key: value for key, value in given.items() if key in fields})
    spec, steps, guidance = zoo.get(f"tiny-{family}"), given["num_inference_steps"], given["guidance_scale"]
    before = plan_of_spec(sampler.sampler, spec, options, (SIDE, SIDE), steps, guidance=guidance)
    made, plan = [], type(sampler.sampler).plan
    monkeypatch.setattr(type(sampler.sampler), "plan", lambda *a: made.append(plan(*a)) or made[-1])
    sample(output_type="latent")
    run = sampler.last_run
    assert len(made) == 1
    assert before.steps == run.plan.steps
    assert [each.describe() for each in before.stages] == [
        {**each.describe(), "sigmas": pytest.approx(each.sigmas)} for each in run.stages
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_call_that_names_neither_size_nor_steps_takes_the_samplers_own(family, sampler, sample, backbone):
    backbone(lambda tokens, *_: torch.zeros_like(tokens))
    sample(height=None, width=None, num_inference_steps=None, output_type="latent")
    run, spec = sampler.last_run, zoo.get(f"tiny-{family}")
    plan = plan_of_spec(sampler.sampler, spec, run.plan.options)
    assert run.stages[-1].size == plan.request.size
    assert [each.steps for each in plan.stages] == [each.steps for each in run.stages]


def test_the_record_says_what_was_run_with_every_value(name, sampler, sample):
    sample(output_type="latent")
    details = json.loads(json.dumps(sampler.details()))
    assert [each["width"] for each in details["stages"]] == [each.width for each in sampler.last_run.stages]
    assert sum((len(s["sigmas"]) - 1) * s["calls_per_step"] for s in details["stages"]) == sampler.model_calls
    assert details["settings"].keys() == type(sampler).Options.model_fields.keys()
    assert surgery.from_record(details["surgeries"])


def test_it_takes_diffusers_arguments_and_documents_its_own_options(name):
    cls = CLASSES[name]
    shown = inspect.signature(cls.__call__).parameters
    stock = inspect.signature(cls.stock().__call__)
    ip_adapter = {key for key in stock.parameters if "ip_adapter" in key}
    # `sigmas` bypass a schedule, which only Euler has no other use for
    own = set(cls.Options.model_fields)
    assert set(stock.parameters) - ip_adapter - {"sigmas"} <= set(shown) | own
    assert not own & set(shown)
    for key in own:
        assert key in cls.__doc__


@pytest.mark.parametrize(
    ("family", "name"), [*(("flux1", name) for name in SAMPLERS), ("flux2", "euler")], indirect=["name"]
)
def test_what_it_saves_is_opened_by_diffusers_and_by_itself(
    family, name, sampler, tmp_path, tiny_flux, tiny_flux2
):
    from diffusers import DiffusionPipeline, __version__

    cls, folder = type(sampler), {"flux1": tiny_flux, "flux2": tiny_flux2}[family]
    parts = {**sampler.components, "transformer": zoo.load_transformer(folder)}
    cls(**parts, **zoo.get(f"tiny-{family}").pipeline_config).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index.pop("_name_or_path", None)
    assert index == json.loads((folder / "model_index.json").read_text())
    assert index["_diffusers_version"] == __version__
    if name == "euler":
        # the others write the same: index, above, and components
        theirs = DiffusionPipeline.from_pretrained(tmp_path, local_files_only=True)
        assert type(theirs) is cls.stock()
    ours = cls.from_pretrained(tmp_path, local_files_only=True)
    assert ours.spec == sampler.spec == zoo.get(f"tiny-{family}")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_of_another_family_is_one_line_before_it_is_loaded(
    family, name, tiny_flux, tiny_flux2, monkeypatch
):
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.load_sub_model", None)
    cls, folder = sampler_class(name, family), {"flux1": tiny_flux2, "flux2": tiny_flux}[family]
    with pytest.raises(UserError, match=rf"is a Flux\w*, and {cls.__name__} is for {family}: take the"):
        cls.from_pretrained(folder, local_files_only=True)


def test_it_is_made_from_the_stock_pipelines_parts(name, stock):
    pipeline = CLASSES[name].from_pipe(stock)
    assert pipeline.transformer is stock.transformer
    assert pipeline._optional_components == stock._optional_components
