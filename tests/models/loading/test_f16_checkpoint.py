"""A checkpoint with an F16 VAE: its factor is known before weights are loaded, and the same everywhere."""

from dataclasses import replace
from pathlib import Path

import pytest

from uhr.cli import main
from uhr.models.loading.opening import open_model
from uhr.models.samplers import find_sampler, names_for, sampler_class
from uhr.models.samplers.core.facts import ModelFacts
from uhr.models.zoo import get, load_pipeline

pytestmark = pytest.mark.usefixtures("short_prompts")

NAMES = names_for("flux1")


def test_the_spec_of_a_checkpoint_has_the_factor_of_its_vae(tiny_flux, tiny_f16):
    plain, opened = open_model(tiny_flux).spec, open_model(tiny_f16).spec
    assert (plain.vae_factor, plain.native_size, plain.pixel_multiple) == (8, 128, 16)
    assert (opened.vae_factor, opened.native_size, opened.pixel_multiple) == (16, 256, 32)
    # as many tokens as the backbone was trained with
    assert plain.tokens(128, 128) == opened.tokens(256, 256) == 64
    assert replace(opened, vae_factor=8, native_size=128) == plain


def test_another_vae_gives_another_factor(tiny_flux, tiny_f16):
    assert open_model(tiny_flux).with_vae(Path(tiny_f16) / "vae").spec == open_model(tiny_f16).spec
    assert open_model(tiny_f16).with_vae(Path(tiny_flux) / "vae").spec == open_model(tiny_flux).spec
    assert open_model(tiny_f16).with_vae(None).spec.vae_factor == 16


@pytest.mark.parametrize("name", NAMES)
def test_the_native_side_in_tokens_is_the_same_with_any_vae_and_before_and_after_loading(
    name, tiny_flux, tiny_f16
):
    sampler = find_sampler(name)
    options = sampler.Options()
    for folder in (tiny_flux, tiny_f16):
        model = open_model(folder)
        planned = sampler.facts_of(model.spec, options)
        loaded = load_pipeline(model, pipeline_class=sampler_class(name, "flux1")).facts
        assert planned.native_side == loaded.native_side == 8
        assert planned.vae_factor == loaded.vae_factor
        assert planned.multiple == (16 if folder == tiny_flux and name != "ultraflux" else 32)
        assert sampler.default_size(planned) == sampler.default_size(loaded)


def test_the_published_spec_has_the_native_side_that_it_was_trained_with():
    facts = ModelFacts.of_spec(get("flux1-dev"))
    assert (facts.native_side, facts.native) == (64, 1024)
    converted = ModelFacts.of_spec(get("flux1-dev"), vae_factor=16)
    assert (converted.native_side, converted.native) == (64, 2048)


@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_is_planned_on_an_f16_checkpoint(name, tiny_f16, capsys):
    arguments = ["sample", name, "--model", str(tiny_f16), "--prompt", "a lake", "--size", "512x512"]
    assert main([*arguments, "--out", "x.png", "--plan"]) == 0, capsys.readouterr().err


def test_a_size_that_the_f16_vae_cannot_make_is_refused_before_anything_is_loaded(
    tiny_f16, tmp_path, capsys, monkeypatch
):
    def must_not_load(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("uhr.models.loading.model.load_component", must_not_load)
    arguments = ["sample", "sdedit", "--model", str(tiny_f16), "--prompt", "a lake", "--size", "272x272"]
    assert main([*arguments, "--out", str(tmp_path / "x.png")]) == 1
    assert "272x272" in capsys.readouterr().err
