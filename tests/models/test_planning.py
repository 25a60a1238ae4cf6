"""What every sampler of the registry says of sizes before any weights are loaded, on every family."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.models import sizes, zoo
from uhr.models.samplers import SAMPLERS, names_for, sampler_class
from uhr.models.stages import total_calls, total_steps

SPECS = ("tiny-flux1", "tiny-flux2", "tiny-flux2-base", "flux1-dev", "flux1-schnell", "flux2-klein-9b")
CASES = [(name, spec) for spec in SPECS for name in names_for(zoo.get(spec).family)]
ASKED = st.integers(1, 24 * 128)


def options_of(cls):
    """Options by which any size can be made: Euler's own schedule ends at 4096 tokens."""
    return cls.Options(shift="static") if "shift" in cls.Options.model_fields else cls.Options()


@pytest.mark.parametrize(("name", "spec"), CASES)
@settings(max_examples=25)
@given(height=ASKED, width=ASKED, picture=st.booleans())
def test_what_is_makeable_is_the_smallest_size_of_its_kind_and_what_is_planned(
    name, spec, height, width, picture
):
    spec = zoo.get(spec)
    cls = sampler_class(name, spec.family)
    options, steps, picture = options_of(cls), max(8, cls.default_steps(spec)), picture and cls.takes_picture

    def check(size):
        cls.preflight(spec, options, *size, steps, False, picture)

    found = cls.makeable(spec, options, height, width)
    assert found[0] >= height
    assert found[1] >= width
    check(found)
    stages = cls.planned(spec, options, *found, steps, picture)
    assert stages[-1].size == found
    assert (stages[0].name == "base") <= (not picture)
    unit = cls.unit(cls.ask(spec, options, *found, steps), cls.resolve(options))
    for size in ((found[0] - unit, found[1]), (found[0], found[1] - unit)):
        if size[0] >= height and size[1] >= width:
            with pytest.raises(UserError, match=r"\d+x\d+"):
                check(size)
    assert cls.makeable(spec, options, *found) == found


@pytest.mark.parametrize(("name", "spec"), CASES)
@settings(max_examples=25)
@given(height=st.integers(0, 24 * 128), width=st.integers(0, 24 * 128))
def test_a_size_that_is_named_as_the_nearest_can_be_made(name, spec, height, width):
    spec = zoo.get(spec)
    cls = sampler_class(name, spec.family)
    options, steps = options_of(cls), max(8, cls.default_steps(spec))
    if cls.makeable(spec, options, max(height, 1), max(width, 1)) == (height, width):
        return
    with pytest.raises(UserError) as found:
        cls.preflight(spec, options, height, width, steps, False)
    named = re.findall(r"(\d+)x(\d+)", found.value.fix)
    assert named or name == "patch-cascade"  # which may say by which option this size can be
    for wide, tall in named:
        cls.preflight(spec, options, int(tall), int(wide), steps, False)


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
def test_the_nearest_size_is_one_that_the_sampler_makes(name, spec, side, near):
    spec = zoo.get(spec)
    cls = sampler_class(name, spec.family)
    with pytest.raises(UserError, match=rf"(nearest|ask for) {near}(?!\d)"):
        cls.preflight(spec, cls.Options(), side, side, 28, False)


@pytest.mark.parametrize(("name", "spec"), CASES)
def test_the_default_size_can_be_made(name, spec):
    spec = zoo.get(spec)
    cls = sampler_class(name, spec.family)
    size, options = cls.default_size(spec), cls.Options()
    assert cls.makeable(spec, options, *size) == size
    steps = cls.default_steps(spec)
    cls.preflight(spec, options, *size, steps, False)
    assert total_steps(cls.planned(spec, options, *size, steps)) >= steps


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
"""Of the backbone for a 4096 x 4096 picture on FLUX.1-dev, as published: every sampler must say."""


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_4k_picture_takes_as_many_calls_as_the_paper_says(name):
    cls, spec = sampler_class(name, "flux1"), zoo.get("flux1-dev")
    plan = cls.planned(spec, options_of(cls), 4096, 4096, cls.default_steps(spec))
    assert total_calls(plan) == CALLS[name]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_picture_where_none_is_taken_is_refused_by_plan_and_call(name):
    cls, spec = sampler_class(name, "flux1"), zoo.get("flux1-dev")
    assert cls.takes_picture == (name not in ("euler", "ultraflux"))
    if not cls.takes_picture:
        with pytest.raises(UserError, match=r"no base pass that a picture.*sdedit or patch-cascade"):
            cls.preflight(spec, cls.Options(), *cls.default_size(spec), 28, False, picture=True)


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
    ("name", "told", "fix"),
    [
        ("euler", {}, "set shift=static"),
        ("imax", {"shift": "native"}, "set shift=static"),
        # the base pass has no `shift` of its own
        ("patch-cascade", {}, "native_size, 2048 px: set it lower"),
        ("sdedit", {}, "native_size, 2048 px: set it lower"),
        ("ultragen", {"shift": "static"}, "native_size, 2048 px: set it lower"),
    ],
)
def test_a_runaway_shift_is_refused_with_what_that_sampler_can_be_told(name, told, fix):
    cls, spec = sampler_class(name, "flux1"), zoo.get("flux1-dev")
    options = cls.Options(native_size=2048, **told)
    with pytest.raises(
        UserError, match="calibrated up to 4096 image tokens; this picture has 16384"
    ) as found:
        cls.preflight(spec, options, *(2 * [2048 if name == "euler" else 4096]), 28, False)
    assert found.value.fix.endswith(fix)


@pytest.mark.parametrize(("name", "spec"), CASES)
def test_a_negative_prompt_and_scales_that_would_do_nothing_are_refused_before_weights(name, spec):
    spec = zoo.get(spec)
    cls = sampler_class(name, spec.family)
    size, steps = cls.default_size(spec), cls.default_steps(spec)
    two_passes = spec.guidance == "cfg"

    def check(negative, guidance=None, **told):
        cls.preflight(spec, cls.Options(**told), *size, steps, negative, False, guidance)

    if not two_passes:
        with pytest.raises(UserError, match="no effect at true_cfg_scale 1"):
            check(True)
    elif name not in ("ultragen", "patch-cascade"):
        check(True, 2.0)
        with pytest.raises(UserError, match="no effect at guidance 1"):
            check(True, 1.0)
    if two_passes and name != "patch-cascade":
        with pytest.raises(UserError, match="true_cfg_scale 3 is given: here guidance_scale is that scale"):
            check(True, 2.0, true_cfg_scale=3.0)
    elif not two_passes:
        with pytest.raises(UserError, match="wants a negative prompt"):
            check(False, true_cfg_scale=3.0)


PICTURES = [case for case in CASES if sampler_class(case[0], zoo.get(case[1]).family).takes_picture]


@pytest.mark.parametrize(("name", "spec"), PICTURES)
def test_with_a_picture_the_calls_guidance_is_of_every_stage_and_else_the_published_one(name, spec):
    spec = zoo.get(spec)
    cls, kind = sampler_class(name, spec.family), spec.guidance
    options = cls.Options(strength=0.7) if name == "multidiffusion" else cls.Options()
    told = (spec, options, *cls.default_size(spec), max(8, cls.default_steps(spec)))
    resolved, plan = cls.resolve(options), cls.planned(*told, True)
    if kind == "none":
        assert cls.guidances(kind, resolved, None, plan) == [None] * len(plan)
        with pytest.raises(UserError, match="takes none"):
            cls.preflight(*told, False, True, 9.0)
        return
    cls.preflight(*told, False, True, 9.0)
    assert cls.guidances(kind, resolved, 9.0, plan) == [9.0] * len(plan)
    unsaid = cls.guidances(kind, resolved, cls.unsaid_guidance(spec, options, plan), plan)
    published = {"patch-cascade": 1, "ultragen": 8 if kind == "cfg" else 4.5}
    if kind == "embedded":
        published |= {"sdedit": 7.5, "imax": 7}
    assert set(unsaid) == {published.get(name, spec.guidance_scale)}
    # with a base pass the number is of that
    base, *above = cls.guidances(kind, resolved, 9.0, cls.planned(*told))
    assert base == 9.0
    assert set(above) == {published.get(name, 9.0)}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("sdedit", {"guidance_high": 5.0}),
        ("hiflow", {"guidance": (4.0, 5.0)}),
        ("patch-cascade", {"patch_guidance": 2.0}),
    ],
)
def test_guidance_that_no_stage_would_take_is_refused(name, told):
    cls, spec = sampler_class(name, "flux1"), zoo.get("flux1-dev")
    asked = (spec, cls.Options(**told), 2048, 2048, 28, False)
    cls.preflight(*asked, True)
    cls.preflight(*asked, False, 3.0)
    with pytest.raises(UserError, match=f"guidance 3 would reach no stage: {next(iter(told))} is given"):
        cls.preflight(*asked, True, 3.0)
