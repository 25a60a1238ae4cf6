"""The ids, texts and shifts of each family of backbones equal those of diffusers."""

import importlib
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.models.families.flux1 import Flux1
from uhr.models.families.flux2 import EmpiricalShift, Flux2
from uhr.models.ops import latents
from uhr.models.samplers import SAMPLERS, find_sampler, names_for, sampler_class


def test_ids_of_flux2_are_those_of_the_stock_pipeline_in_float32():
    from diffusers import Flux2KleinPipeline

    ids = Flux2().image_ids(3, 5)
    theirs = Flux2KleinPipeline._prepare_latent_ids(torch.zeros(1, 128, 3, 5))[0]
    assert ids.dtype == torch.float32
    assert torch.equal(ids, theirs.float())
    text = Flux2KleinPipeline._prepare_text_ids(torch.zeros(1, 7, 4))[0]
    assert torch.equal(Flux2().text_ids(7), text.float())


def test_ids_of_flux1_have_three_axes():
    assert Flux1().image_ids(2, 3).shape == (6, 3)
    assert not Flux1().text_ids(4).any()


@given(st.integers(1, 4300), st.integers(1, 200))
def test_flux2s_dynamic_shift_is_diffusers_own_up_to_its_calibration(tokens, steps):
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    shift = EmpiricalShift(steps)
    assert shift.mu(tokens) == pytest.approx(compute_empirical_mu(tokens, steps), abs=1e-9)
    assert shift.factor(tokens) == pytest.approx(math.exp(shift.mu(tokens)))


def test_flux2s_dynamic_shift_is_refused_where_it_runs_away():
    with pytest.raises(UserError, match=r"65536 \(factor 103,7"):
        EmpiricalShift(50).factor(65536)


@given(
    st.integers(1, 2), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**31 - 1)
)  # fmt: skip
def test_patch_statistics_are_those_that_the_stock_pipeline_applies(batch, rows, columns, seed):
    from diffusers import Flux2KleinPipeline

    draw = torch.Generator().manual_seed(seed)
    raw = torch.randn(batch, 3, 2 * rows, 2 * columns, generator=draw)
    mean, std = torch.randn(12, generator=draw), torch.rand(12, generator=draw) + 0.5
    norm = latents.PatchNormalisation(mean, std)
    patches = Flux2KleinPipeline._patchify_latents(raw)
    theirs = (patches - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)
    tokens = Flux2KleinPipeline._pack_latents(theirs)
    torch.testing.assert_close(latents.pack(norm.to_model(raw)), tokens)
    torch.testing.assert_close(norm.to_raw(norm.to_model(raw)), raw, atol=1e-5, rtol=1e-5)


def test_noise_is_drawn_in_the_stock_pipelines_order():
    assert Flux1().noise_shape(16, 8, 12) == (16, 8, 12)
    assert Flux2().noise_shape(32, 8, 12) == (128, 4, 6)


@pytest.mark.parametrize("family", ["flux1", "flux2"])
def test_the_sampler_of_a_family_is_a_pipeline_of_that_family(family):
    for name in names_for(family):
        cls = sampler_class(name, family)
        assert cls.family.name == family
        assert cls is sampler_class(name, family)
        module = importlib.import_module(cls.__module__)
        assert getattr(module, cls.__name__) is cls


def test_samplers_share_one_call_among_their_families():
    assert len({sampler_class(name, f).__call__ for name in SAMPLERS for f in ("flux1", "flux2")}) == 1


def test_a_family_that_a_sampler_does_not_run_on_is_one_clear_line():
    with pytest.raises(UserError, match="sampler 'euler' does not run on flux9 backbones: it runs on flux1"):
        sampler_class("euler", "flux9")
    with pytest.raises(UserError, match="is for flux1 backbones, and this one is of family flux2"):
        sampler_class("uhr.models.samplers.euler:EulerPipeline", "flux2")
    with pytest.raises(UserError, match="is not a sampler: derive it from"):
        sampler_class("uhr.models.samplers.euler:EulerOptions", "flux1")


def test_a_sampler_may_be_named_by_its_class_or_by_a_pipeline_of_it():
    from uhr.models.samplers.euler import Euler, EulerPipeline, Flux2EulerPipeline

    assert sampler_class("uhr.models.samplers.euler:Euler", "flux2") is Flux2EulerPipeline
    assert sampler_class("uhr.models.samplers.euler:EulerPipeline", "flux1") is EulerPipeline
    for name in ("Euler", "EulerPipeline"):
        assert type(find_sampler(f"uhr.models.samplers.euler:{name}")) is Euler
