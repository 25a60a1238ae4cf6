"""Euler with the toolkit: the papers' FLUX*."""

import pytest
import torch

from uhr.base.errors import UserError
from uhr.models import zoo
from uhr.models.samplers.core.sampler import plan_of_spec
from uhr.models.samplers.euler import Euler, EulerOptions, EulerPipeline
from uhr.models.surgery import base as surgery


@pytest.fixture
def euler(made):
    return made(EulerPipeline)


def test_the_toolkit_acts_above_the_native_size_and_is_taken_off(euler, call, seeded):
    def sample(**more):
        return euler("x", **{**call, **more}, generator=seeded(), output_type="latent").images

    plain, star = sample(shift="static"), sample(toolkit={})
    assert not torch.allclose(plain, star, atol=1e-3)
    names = [each["surgery"] for each in euler.details()["surgeries"]]
    assert names == ["exact-tiling", "rope-ntk", "attention-calls"]
    assert surgery.applied(euler.transformer) == []
    assert torch.equal(sample(toolkit={"ntk": 1, "proportional": False}), plain)
    assert not torch.allclose(sample(toolkit={"text_duplication": True}), star, atol=1e-4)
    small = {"height": 128, "width": 128}
    assert torch.equal(sample(**small, toolkit={}), sample(**small, shift="static"))


def test_with_the_toolkit_the_shift_is_static_and_4k_is_no_runaway(euler, call, seeded):
    plan_of_spec(Euler(), zoo.get("flux1-dev"), EulerOptions(toolkit={}), (4096, 4096), 28)
    with pytest.raises(UserError, match="65536"):
        plan_of_spec(Euler(), zoo.get("flux1-dev"), EulerOptions(), (4096, 4096), 28)
    euler("x", **call, toolkit={}, generator=seeded(), output_type="latent")
    assert euler.sigmas[1] == pytest.approx(3 * (2 / 3) / (1 + 2 * 2 / 3))
