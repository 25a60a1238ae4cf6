import json

import pytest
import torch

from uhr.base.errors import UserError
from uhr.models import zoo
from uhr.models.ops import flow, latents
from uhr.models.ops.filters import bicubic, sharpen
from uhr.models.samplers import ultragen as ultragen_module
from uhr.models.samplers.core.engine import Engine, guided
from uhr.models.samplers.core.sampler import plan_of_spec
from uhr.models.samplers.ultragen import Flux2UltraGenPipeline, UltraGen, UltraGenPipeline
from uhr.models.samplers.ultragen_plan import UltraGenOptions, code_weight
from uhr.models.surgery import base as surgery
from uhr.models.surgery.rope import RopeNtk

SHORT = {"num_inference_steps": 4, "base_steps": 2, "skip": 2, "output_type": "latent"}


@pytest.fixture
def ultragen(made):
    return made(UltraGenPipeline)


@pytest.fixture
def sample(ultragen, call, seeded):
    """A short call, seed 0, as z tokens; keywords change it."""

    def run(prompt="a red house", **more):
        return ultragen(prompt, **{**call, **SHORT, "generator": seeded(), **more})

    return run


@pytest.fixture
def still(ultragen, backbone):
    """A field that does not move: a stage ends where it began."""
    backbone(lambda tokens, *_: torch.zeros_like(tokens))
    return ultragen


def plan(name="flux1-dev", height=4096, width=4096, steps=None, image=False, **options):
    chosen = UltraGenOptions(**options)
    return plan_of_spec(UltraGen(), zoo.get(name), chosen, (height, width), steps, image=image).stages


def test_4k_is_28_calls_at_1k_and_the_last_18_of_28_from_level_0_84375():
    base, high = plan()
    assert ((base.size, base.steps), (high.size, high.steps)) == (((1024, 1024), 28), ((4096, 4096), 18))
    assert high.sigmas[0] == 0.84375
    assert high.sigmas[-2] == pytest.approx(0.1)
    assert base.total_calls + high.total_calls == 46
    assert (base.guidance, high.guidance) == (3.5, 4.5)
    assert plan_of_spec(UltraGen(), zoo.get("flux1-dev"), UltraGenOptions()).request.size == (4096, 4096)


@pytest.mark.parametrize(
    ("size", "lower"),
    [
        ((2048, 2048), []),
        ((5120, 5120), []),
        ((8192, 8192), [(2048, 2048)]),
        ((16384, 16384), [(4096, 4096)]),
        ((32768, 32768), [(2048, 2048), (8192, 8192)]),
        ((4608, 8192), [(1024, 1792)]),
    ],
)
def test_above_4k_a_stage_of_a_quarter_of_the_side_is_generated_first(size, lower):
    found = [stage.size for stage in plan(height=size[0], width=size[1])]
    assert found[1:] == [*lower, size]
    assert all(side % 256 == 0 for stage in found[1:] for side in stage)


def test_stages_below_can_be_named_and_an_image_goes_straight_to_the_target():
    assert [s.size[0] for s in plan(height=8192, width=8192, below=(0.25, 0.5))[1:]] == [2048, 4096, 8192]
    assert [s.size[0] for s in plan(height=8192, width=8192, below=())[1:]] == [8192]
    assert [s.size[0] for s in plan(height=8192, width=8192, image=True)] == [8192]
    for wrong in ((0.5, 0.25), (0.0, 0.5), (1.0,)):
        with pytest.raises(UserError, match="rising shares"):
            plan(height=8192, width=8192, below=wrong)
    with pytest.raises(UserError, match="size 1024x1024 is not above the native 1024x1024"):
        plan(below=(0.25,))


def test_few_step_flux2_starts_from_noise_and_others_skip_in_proportion():
    klein, tiny = plan("flux2-klein-9b")[-1], plan("tiny-flux2", 512, 512)[-1]
    assert (klein.steps, klein.sigmas[0], tiny.sigmas[0]) == (4, 1.0, 1.0)
    assert [plan(steps=steps)[-1].steps for steps in (14, 28, 56)] == [9, 18, 36]
    assert plan(skip=4)[-1].steps == 24
    with pytest.raises(UserError, match="skip 28 of 28 steps"):
        plan(skip=28)


@pytest.mark.parametrize("size", [(1000, 4096), (4096, 2000), (4104, 4096)])
def test_a_size_without_whole_windows_names_the_nearest_before_weights_and_in_a_call(size, ultragen, call):
    spec = zoo.get("flux1-dev")
    with pytest.raises(UserError, match=r"cannot be generated: use multiples of 256; nearest \d+x\d+"):
        plan_of_spec(UltraGen(), spec, UltraGenOptions(), size, 28)
    with pytest.raises(
        UserError, match="256x272 cannot be generated: use multiples of 64; nearest 256x256 or 256x320"
    ):
        ultragen("x", **{**call, "height": 272, "width": 256})


def test_sizes_and_settings_that_cannot_be_are_one_clear_line(ultragen, call):
    with pytest.raises(UserError, match="size 128x128 is not above the native 128x128"):
        ultragen("x", **{**call, "height": 128, "width": 128})
    with pytest.raises(UserError, match="takes no guidance"):
        plan_of_spec(UltraGen(), zoo.get("tiny-flux2"), UltraGenOptions(guidance_high=4.5), (512, 512), 4)
    with pytest.raises(UserError, match="are not divisible by the guide's ratio"):
        plan(window=6)


@pytest.mark.parametrize("warm_start", ["pixels", "latents"])
@pytest.mark.parametrize("projection", ["off", "code", "decay"])
def test_with_a_straight_field_it_returns_its_target(
    warm_start, projection, ultragen, sample, straight, monkeypatch
):
    target = straight(ultragen)

    def encode(engine, images, generator=None):
        rows, columns = images.shape[-2] // 8, images.shape[-1] // 8
        return latents.unpack(target(rows * columns // 4), rows, columns)

    monkeypatch.setattr(Engine, "encode", encode)
    found = sample(warm_start=warm_start, projection=projection).images
    torch.testing.assert_close(found, target(256), atol=2e-5, rtol=2e-5)


def test_the_surgeries_and_settings_of_the_call_are_in_its_record(ultragen, sample):
    sample()
    details = json.loads(json.dumps(ultragen.details()))
    assert [each["surgery"] for each in details["surgeries"]] == [
        "exact-tiling",
        "attention-calls",
        "rope-ntk",
    ]
    assert details["surgeries"][-1]["factor"] == 10
    filled = {"skip": 2, "ntk": 10.0, "window": 4, "below": [], "guide_adapters": []}
    assert {key: details["settings"][key] for key in filled} == filled
    assert details["settings"]["rules"]["neighbourhood"] == "box"
    assert "Fetch UltraGen's LoRA" in details["notes"][0]


def dense(engine, stage, start, conditions):
    """The stage's path by the stock transformer at NTK 10, every token seeing every other."""
    ids = engine.models.family.image_ids(*engine.grid(stage.size))
    with torch.no_grad(), surgery.temporarily(engine.models.transformer, RopeNtk(factor=10)):
        return flow.euler(
            lambda x, sigma, step: guided(engine.call, x, sigma, conditions.at(ids)),
            latents.pack(start),
            stage.sigmas,
        )


def test_a_window_as_large_as_the_grid_without_a_guide_is_the_dense_run(sample, seeded, monkeypatch):
    seen = []
    integrate = Engine.integrate
    monkeypatch.setattr(Engine, "integrate", lambda *args: seen.append(args) or integrate(*args))
    image = torch.rand(1, 3, 128, 128, generator=seeded(2))
    whole = sample(image=image, guide=False, window=16).images
    engine, stage, start, _ = seen[0]
    expected = dense(engine, stage, start, engine.conditions(stage))
    torch.testing.assert_close(whole, expected, atol=2e-5, rtol=2e-5)
    local = sample(image=image, guide=False, rules={"neighbourhood": "own"}).images
    assert not torch.allclose(local, whole, atol=1e-3)


def test_the_guide_changes_the_image_and_a_cached_one_is_the_exact_one_where_it_sees_no_text(sample):
    blind = {"guide_to_text": False}
    exact, cached = sample(cached=False, rules=blind).images, sample(rules=blind).images
    torch.testing.assert_close(exact, cached, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(exact, sample(guide=False).images, atol=1e-4)
    one_step = {"num_inference_steps": 2, "skip": 1}
    torch.testing.assert_close(
        sample(**one_step).images, sample(**one_step, cached=False).images, atol=1e-5, rtol=1e-5
    )


def test_the_warm_start_is_the_image_sharpened_in_pixels_or_its_latents_enlarged(
    still, sample, seeded, engine_of
):
    engine = engine_of(still, seeded())
    image = torch.rand(1, 3, 128, 128, generator=seeded(2))
    noise = engine.noise.draw(1, (256, 256))
    large = bicubic(2 * image - 1, 256, 256)
    small = engine.encode(bicubic(2 * image - 1, 64, 64))
    for data, options in (
        (engine.encode(sharpen(large, 1.0)), {}),
        (engine.encode(large), {"sharpening": None}),
        (bicubic(small, 32, 32), {"warm_start": "latents"}),
    ):
        found = sample(image=image, **options).images
        expected = flow.interpolate(data, noise, still.last_run.stages[0].sigmas[0])
        torch.testing.assert_close(found, latents.pack(expected), atol=1e-5, rtol=1e-5)


@pytest.fixture
def guides(monkeypatch):
    """(height of the stage in px, z of its guide) of every stage that runs from now on."""
    found, windowed = [], ultragen_module.windowed

    def spy(engine, stage, options, guide):
        found.append((stage.height, guide))
        return windowed(engine, stage, options, guide)

    monkeypatch.setattr(ultragen_module, "windowed", spy)
    return found


def test_latents_of_the_guides_size_are_the_guide_and_others_are_resized_in_pixels(
    ultragen, sample, guides, engine_of
):
    base, engine = sample(height=512, width=512, return_stages=True).stages[0], engine_of(ultragen)
    assert torch.equal(latents.pack(guides[0][1]), base)
    guides.clear()
    below = sample(return_stages=True).stages[0]
    images = engine.decode(latents.unpack(below, 16, 16))
    expected = engine.encode(bicubic(images, 64, 64))
    torch.testing.assert_close(guides[0][1], expected, atol=1e-5, rtol=1e-5)


def test_in_the_recursion_each_image_is_the_next_ones_guide(ultragen, sample, guides):
    one = {"num_inference_steps": 2, "skip": 1, "base_steps": 1}
    output = sample(height=1024, width=1024, return_stages=True, **one)
    assert [stage.name for stage in ultragen.last_run.stages] == ["base", "256x256", "1024x1024"]
    assert len(output.stages) == 2
    assert [height for height, _ in guides] == [256, 1024]
    assert torch.equal(latents.pack(guides[1][1]), output.stages[1])
    assert ultragen.model_calls == 3


def test_the_codes_projection_weight_falls_to_0_and_rises_again():
    weights = [code_weight(i, 18, 28) for i in range(18)]
    assert weights[0] == pytest.approx(0.283, abs=5e-4)
    assert weights[10] == pytest.approx(0, abs=1e-12)
    assert weights[17] == pytest.approx(0.146, abs=5e-4)


def test_projection_and_options_change_the_image(sample):
    plain = sample().images
    for options in (
        {"projection": "code"},
        {"projection": "decay"},
        {"base_ntk": 10.0},
        {"base_shift": 3.0},
        {"ntk": 1.0},
        {"guidance_high": 9.0},
        {"rules": {"neighbourhood": "cross"}, "window": 4},
        {"ratio": 2},
    ):
        assert not torch.allclose(sample(**options).images, plain, atol=1e-4), options


def test_guidance_above_the_base_is_4_5_and_the_base_has_the_calls(sample, backbone_calls):
    sample()
    assert [condition.guidance.item() for condition in backbone_calls] == [3.5, 3.5, 4.5, 4.5]


def test_a_batch_is_its_images_and_a_negative_prompt_has_a_guide_of_its_own(ultragen, sample, seeded):
    prompts = ["a red house", "a blue lake"]
    both = sample(prompts, generator=[seeded(0), seeded(1)]).images
    for i, prompt in enumerate(prompts):
        torch.testing.assert_close(
            both[i : i + 1], sample(prompt, generator=seeded(i)).images, atol=1e-4, rtol=1e-4
        )
    same = sample(negative_prompt="a red house", true_cfg_scale=3.0).images
    torch.testing.assert_close(same, sample().images, atol=1e-4, rtol=1e-4)


def test_flux2_runs_by_its_own_configuration(tiny_flux2, seeded):
    sampler = Flux2UltraGenPipeline.from_pretrained(tiny_flux2, local_files_only=True)
    sampler.set_progress_bar_config(disable=True)
    more = {"height": 512, "width": 512, "max_sequence_length": 32, "output_type": "latent"}
    found = sampler("x", **more, generator=seeded()).images
    assert torch.isfinite(found).all()
    assert torch.equal(found, sampler("x", **more, generator=seeded()).images)
    assert sampler.model_calls == 4 + 4
    # its configuration leaves the positions alone
    assert [each["surgery"] for each in sampler.last_run.surgeries] == ["exact-tiling", "attention-calls"]


def test_an_undistilled_flux2_is_guided_by_two_passes_at_8_above_the_base(tiny_flux2, seeded):
    sampler = Flux2UltraGenPipeline.from_pretrained(tiny_flux2, local_files_only=True, is_distilled=False)
    sampler.set_progress_bar_config(disable=True)
    more = {
        "height": 256,
        "width": 256,
        "max_sequence_length": 32,
        "output_type": "latent",
        "num_inference_steps": 2,
        "skip": 1,
        "base_steps": 1,
        "native_size": 128,
        "guidance_scale": 4.0,
    }
    plain = sampler("x", **more, generator=seeded()).images
    assert sampler.model_calls == 2 * 2
    assert torch.equal(plain, sampler("x", **more, guidance_high=8.0, generator=seeded()).images)
    assert not torch.allclose(
        plain, sampler("x", **more, guidance_high=4.0, generator=seeded()).images, atol=1e-3
    )


def test_a_cached_guide_runs_once_for_each_branch_of_a_stage_and_an_exact_one_at_every_call(
    sample, monkeypatch
):
    from uhr.models.attention.streams import Flux1Stream

    runs = []
    embed = Flux1Stream.embed
    monkeypatch.setattr(Flux1Stream, "embed", lambda stream: runs.append(1) or embed(stream))
    for options, expected in (({}, 2), ({"cached": False}, 4)):
        runs.clear()
        sample(negative_prompt="blue", true_cfg_scale=2.0, **options)
        assert len(runs) == expected
