"""The staged samplers on FLUX.2: few-step models without guidance, and undistilled ones guided by two
passes."""

import pytest
import torch

from uhr.base.errors import UserError
from uhr.models import zoo
from uhr.models.samplers import SAMPLERS, find_sampler, sampler_class
from uhr.models.samplers.core.sampler import plan_of_spec

CALL = {"height": 256, "width": 256, "max_sequence_length": 32, "output_type": "latent"}


@pytest.fixture(scope="module")
def made2(tiny_flux2):
    """A maker of pipelines that share tiny-flux2's components."""
    first = sampler_class("euler", "flux2").from_pretrained(tiny_flux2, local_files_only=True)

    def make(name, **config):
        pipeline = sampler_class(name, "flux2")(**first.components, **{"is_distilled": True, **config})
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make


def test_stages_above_the_base_take_the_familys_shift_at_the_native_size(made2, seeded):
    sampler = made2("sdedit")
    sampler("x", **CALL, strength=0.5, image=torch.rand(3, 128, 128), generator=seeded())
    expected = sampler.facts.schedule(4, 64, "dynamic")[2:]
    assert sampler.last_run.stages[0].sigmas == pytest.approx(expected)
    sampler("x", **CALL, strength=0.5, shift="static", image=torch.rand(3, 128, 128), generator=seeded())
    assert sampler.last_run.stages[0].sigmas == pytest.approx((0.75, 0.5, 0.0))


def test_guidance_of_a_model_that_takes_none_is_rejected(made2):
    spec = zoo.get("tiny-flux2")
    for sampler in map(find_sampler, SAMPLERS):
        if "guidance_high" in sampler.Options.model_fields:
            with pytest.raises(UserError, match="this backbone takes no guidance: leave out guidance_high"):
                plan_of_spec(sampler, spec, sampler.Options(guidance_high=5.0), (256, 256), 4)
    cascade = find_sampler("patch-cascade")
    with pytest.raises(UserError, match="patch_guidance 2 is given, and this backbone embeds no guidance"):
        plan_of_spec(cascade, spec, cascade.Options(patch_guidance=2), (256, 256), 4)
    with pytest.raises(UserError, match="takes none"):
        made2("imax")("x", **CALL, guidance_scale=3.5)
    with pytest.raises(UserError, match="leave out guidance_high"):
        made2("imax")("x", **CALL, guidance_high=3.5)


def test_an_undistilled_model_is_guided_by_two_passes_at_every_stage(made2, seeded):
    sampler = made2("imax", is_distilled=False)
    more = {**CALL, "num_inference_steps": 2, "native_size": 128, "guidance_scale": 4.0}
    plain = sampler("x", **more, generator=seeded()).images
    assert sampler.model_calls == 2 * 4
    # the published 7 is a number for embedded guidance
    same = sampler("x", **more, guidance_high=4.0, generator=seeded()).images
    other = sampler("x", **more, guidance_high=7.0, generator=seeded()).images
    assert torch.equal(plain, same)
    assert not torch.allclose(plain, other, atol=1e-3)


def test_a_backbone_that_no_spec_describes_wants_its_native_size(made2, seeded, monkeypatch):
    sampler = made2("imax")
    monkeypatch.setattr("uhr.models.specs.registry.SPECS", {})
    with pytest.raises(UserError, match="give native_size"):
        sampler("x", **CALL)
    sampler("x", **CALL, num_inference_steps=1, native_size=128, generator=seeded())
    assert [stage.name for stage in sampler.last_run.stages] == ["base", "256x256"]
