"""What every sampler of the registry says of sizes before any weights are loaded, on every family."""

import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.models import zoo
from uhr.models.ops import sizes
from uhr.models.samplers import SAMPLERS, find_sampler, names_for
from uhr.models.samplers.core.sampler import plan_of_spec

SPECS = ("tiny-flux1", "tiny-flux2", "tiny-flux2-base", "flux1-dev", "flux1-schnell", "flux2-klein-9b")
CASES = [(name, spec) for spec in SPECS for name in names_for(zoo.get(spec).family)]
SHAPES = [(name, spec) for name, spec in CASES if spec not in ("tiny-flux2-base", "flux1-schnell")]
"""Those of specs that differ in native size, VAE or family: what a size depends on."""

SIDES = st.integers(1, 24 * 128)


def options_of(sampler):
    """Options by which any size can be made: Euler's own schedule ends at 4096 tokens."""
    fields = sampler.Options.model_fields
    return sampler.Options(shift="static") if "shift" in fields else sampler.Options()


def rule_of(sampler, spec, options):
    return sampler.sizes(sampler.facts_of(spec, options), options)


def default_steps(sampler, spec, least=1):
    return max(least, sampler.default_steps(sampler.facts_of(spec, sampler.Options())))


def default_size(sampler, spec):
    return sampler.default_size(sampler.facts_of(spec, sampler.Options()))


@pytest.mark.parametrize(("name", "spec"), SHAPES)
@settings(max_examples=25)
@given(height=SIDES, width=SIDES, image=st.booleans())
def test_the_smallest_size_of_a_rule_is_the_smallest_of_its_kind_and_what_is_planned(
    name, spec, height, width, image
):
    spec, sampler = zoo.get(spec), find_sampler(name)
    options, steps, image = (
        options_of(sampler),
        default_steps(sampler, spec, 8),
        image and sampler.takes_image,
    )
    rule = rule_of(sampler, spec, options)

    def plan(size):
        return plan_of_spec(sampler, spec, options, size, steps, image=image)

    found = rule.smallest((height, width))
    assert found[0] >= height
    assert found[1] >= width
    stages = plan(found).stages
    assert stages[-1].size == found
    assert (stages[0].name == "base") <= (not image)
    unit = rule.unit(found)
    for size in ((found[0] - unit, found[1]), (found[0], found[1] - unit)):
        if size[0] >= height and size[1] >= width:
            with pytest.raises(UserError, match=r"\d+x\d+"):
                plan(size)
    assert rule.smallest(found) == found


@pytest.mark.parametrize(("name", "spec"), SHAPES)
@settings(max_examples=8)
@given(height=st.integers(0, 24 * 128), width=st.integers(0, 24 * 128))
def test_a_size_that_an_error_names_can_be_generated(name, spec, height, width):
    spec, sampler = zoo.get(spec), find_sampler(name)
    options, steps = options_of(sampler), default_steps(sampler, spec, 8)
    assume(rule_of(sampler, spec, options).smallest((max(height, 1), max(width, 1))) != (height, width))
    with pytest.raises(UserError) as found:
        plan_of_spec(sampler, spec, options, (height, width), steps)
    named = re.findall(r"(\d+)x(\d+)", found.value.fix)
    assert named or name == "patch-cascade"  # which may name the option by which this size can be made
    for wide, tall in named:
        plan_of_spec(sampler, spec, options, (int(tall), int(wide)), steps)


@pytest.mark.parametrize(
    ("name", "spec", "side", "near"),
    [
        ("ultragen", "flux1-dev", 1000, "1024x1280"),
        ("ultragen", "tiny-flux1", 100, "128x192"),
        ("ultragen", "flux1-dev", 1024, "1024x1280"),
        ("hiflow", "tiny-flux1", 120, "128x144"),
        ("imax", "tiny-flux1", 0, "128x144"),
        ("euler", "tiny-flux1", 0, "16x16"),
        # its schedule ends at 4096 tokens
        ("euler", "flux1-dev", 1030, "1024x1024$"),
    ],
)
def test_the_nearest_size_is_one_that_the_sampler_generates(name, spec, side, near):
    sampler = find_sampler(name)
    with pytest.raises(UserError, match=rf"(nearest|use) {near}(?!\d)"):
        plan_of_spec(sampler, zoo.get(spec), sampler.Options(), (side, side), 28)


@pytest.mark.parametrize(("name", "spec"), CASES)
def test_the_default_size_can_be_made(name, spec):
    spec, sampler = zoo.get(spec), find_sampler(name)
    size, options = default_size(sampler, spec), sampler.Options()
    assert rule_of(sampler, spec, options).smallest(size) == size
    plan = plan_of_spec(sampler, spec, options)
    assert plan.request.size == size
    assert plan.steps >= default_steps(sampler, spec)


CALLS = {
    "euler": 28,
    "sdedit": 28 + 14,
    "multidiffusion": 50 * 49,
    "demofusion": 50 + 50 * (9 + 4) + 50 * (25 + 9) + 50 * (49 + 16),
    "imax": 30 + 30,
    "hiflow": 30 + 10 + 3 + 3,
    "ultragen": 28 + 18,
    "patch-cascade": 28 + 4 * 36,
    "ultraflux": 50,
}
"""Of the backbone for a 4096 x 4096 image on FLUX.1-dev, as published: every sampler has a number here."""


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_4k_image_takes_as_many_calls_as_the_paper_says(name):
    sampler = find_sampler(name)
    plan = plan_of_spec(sampler, zoo.get("flux1-dev"), options_of(sampler), (4096, 4096))
    assert plan.model_calls == CALLS[name]


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_where_none_is_taken_is_rejected_by_the_plan(name):
    sampler = find_sampler(name)
    assert sampler.takes_image == (name not in ("euler", "ultraflux"))
    if not sampler.takes_image:
        with pytest.raises(UserError, match=r"no base pass that an image.*sdedit or patch-cascade"):
            plan_of_spec(sampler, zoo.get("flux1-dev"), sampler.Options(), image=True)


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 64), st.integers(1, 40_000))
def test_the_smallest_size_is_no_longer_than_need_be(height, width, unit, area):
    def enough(size):
        return size[0] * size[1] >= area

    found = sizes.smallest((height, width), lambda size: unit, enough)
    assert found[0] % unit == found[1] % unit == 0
    assert found[0] >= height
    assert found[1] >= width
    assert enough(found)
    for shorter in ((found[0] - unit, found[1]), (found[0], found[1] - unit)):
        assert shorter[0] < height or shorter[1] < width or not enough(shorter)


@pytest.mark.parametrize(
    ("name", "given", "fix"),
    [
        ("euler", {}, "set shift=static"),
        ("imax", {"shift": "native"}, "set shift=static"),
        # the base pass has no `shift` of its own
        ("patch-cascade", {}, "native_size, 2048 px: set it lower"),
        ("sdedit", {}, "native_size, 2048 px: set it lower"),
        ("ultragen", {"shift": "static"}, "native_size, 2048 px: set it lower"),
    ],
)
def test_a_shift_out_of_range_is_rejected_with_what_that_sampler_can_change(name, given, fix):
    sampler, side = find_sampler(name), 2048 if name == "euler" else 4096
    options = sampler.Options(native_size=2048, **given)
    message = "calibrated up to 4096 image tokens; this image has 16384"
    with pytest.raises(UserError, match=message) as found:
        plan_of_spec(sampler, zoo.get("flux1-dev"), options, (side, side), 28)
    assert found.value.fix.endswith(fix)


@pytest.mark.parametrize(("name", "spec"), CASES)
def test_a_negative_prompt_and_scales_that_would_do_nothing_are_rejected_before_weights(name, spec):
    spec, sampler = zoo.get(spec), find_sampler(name)
    two_passes = spec.guidance == "cfg"

    def scales(negative, guidance=None, **given):
        plan = plan_of_spec(sampler, spec, sampler.Options(**given), guidance=guidance, negative=negative)
        return [stage.guidance for stage in plan.stages]

    if not two_passes:
        with pytest.raises(UserError, match="no effect at true_cfg_scale 1"):
            scales(True)
        with pytest.raises(UserError, match="requires a negative prompt"):
            scales(False, true_cfg_scale=3.0)
        return
    assert scales(True, 2.0)[0] == 2
    if name == "ultragen":
        # the stage that is guided by the base has a scale of its own
        assert scales(True, 1.0) == [1, 8]
    else:
        with pytest.raises(UserError, match="no effect at guidance 1"):
            scales(True, 1.0)
    if name == "patch-cascade":
        # the option is of the patches
        assert scales(True, 2.0, true_cfg_scale=3.0) == [2, 3]
    else:
        with pytest.raises(UserError, match="true_cfg_scale 3 is given: here guidance_scale is that scale"):
            scales(True, 2.0, true_cfg_scale=3.0)


IMAGES = [case for case in CASES if find_sampler(case[0]).takes_image]


@pytest.mark.parametrize(("name", "spec"), IMAGES)
def test_with_an_image_the_calls_guidance_is_of_every_stage_and_else_the_published_one(name, spec):
    spec, sampler = zoo.get(spec), find_sampler(name)
    options = sampler.Options(strength=0.7) if name == "multidiffusion" else sampler.Options()
    steps = default_steps(sampler, spec, 8)

    def numbers(guidance, image=True):
        plan = plan_of_spec(sampler, spec, options, steps=steps, image=image, guidance=guidance)
        return [stage.guidance for stage in plan.stages]

    if spec.guidance == "none":
        assert set(numbers(None)) == {None}
        with pytest.raises(UserError, match="takes none"):
            numbers(9.0)
        return
    assert set(numbers(9.0)) == {9.0}
    published = {"patch-cascade": 1, "ultragen": 8 if spec.guidance == "cfg" else 4.5}
    if spec.guidance == "embedded":
        published |= {"sdedit": 7.5, "imax": 7}
    assert set(numbers(None)) == {published.get(name, spec.guidance_scale)}
    # with a base pass the number is of that
    base, *above = numbers(9.0, image=False)
    assert base == 9.0
    assert set(above) == {published.get(name, 9.0)}


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("sdedit", {"guidance_high": 5.0}),
        ("hiflow", {"guidance": (4.0, 5.0)}),
        ("patch-cascade", {"patch_guidance": 2.0}),
    ],
)
def test_guidance_that_no_stage_would_take_is_rejected(name, given):
    sampler, spec = find_sampler(name), zoo.get("flux1-dev")

    def plan(image, guidance=None):
        options = sampler.Options(**given)
        return plan_of_spec(sampler, spec, options, (2048, 2048), 28, image=image, guidance=guidance)

    plan(True)
    plan(False, 3.0)
    with pytest.raises(UserError, match=f"guidance 3 has no effect: {next(iter(given))} is given"):
        plan(True, 3.0)


def test_a_plan_counts_steps_times_calls_times_branches():
    sampler, spec = find_sampler("multidiffusion"), zoo.get("tiny-flux1")
    options = sampler.Options(strength=0.5, base_steps=2, true_cfg_scale=2.0)
    plan = plan_of_spec(sampler, spec, options, (256, 512), 4, negative=True)
    assert [(stage.name, stage.steps, stage.calls_per_step, stage.branches) for stage in plan.stages] == [
        ("base", 2, 1, 2),
        ("512x256", 2, 21, 2),
    ]
    assert (plan.steps, plan.model_calls) == (4, 2 * (2 + 2 * 21))
