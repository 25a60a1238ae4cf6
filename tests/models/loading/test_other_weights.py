"""Weights of another model are refused in one line, before anything is loaded."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from uhr.base.errors import UserError
from uhr.cli import main
from uhr.models import zoo
from uhr.models.loading.other_weights import check_weights

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("component", ["transformer", "vae"])
@pytest.mark.parametrize("lone", [False, True])
def test_another_familys_weights_are_refused_before_loading(
    component, lone, tiny_flux, tiny_flux2, tmp_path, capfd
):
    call = ["sample", "euler", "--prompt", "a", "--size", "64x64", "--steps", "1", "--device", "cpu"]
    for model, other in ((tiny_flux, tiny_flux2), (tiny_flux2, tiny_flux)):
        named = other / component / WEIGHTS if lone else other / component
        more = ["--model", model, f"--{component}", named, "--out", tmp_path / "x.png"]
        assert main([*call, *map(str, more)]) == 1
        out, err = capfd.readouterr()
        (line,) = err.splitlines()
        assert line.startswith(f"uhr: --{component} {named} ")
        assert "tiny-flux" in line
        assert out == ""


@pytest.mark.parametrize("component", ["transformer", "vae"])
@pytest.mark.parametrize("name", ["tiny-flux1", "tiny-flux2"])
def test_a_models_own_weights_are_such(component, name, tiny_flux, tiny_flux2):
    own = {"tiny-flux1": tiny_flux, "tiny-flux2": tiny_flux2}[name] / component
    for place in (own, own / WEIGHTS):
        check_weights(component, place, zoo.get(name))


def test_a_backbone_with_other_inputs_is_refused_one_with_fewer_blocks_is_not(tiny_flux, tmp_path):
    folder, spec = tmp_path / "transformer", zoo.get("tiny-flux1")
    shutil.copytree(tiny_flux / "transformer", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_single_layers": 1}))
    check_weights("transformer", folder, spec)
    (folder / "config.json").write_text(json.dumps({**config, "guidance_embeds": False}))
    with pytest.raises(UserError, match="has guidance_embeds False, and tiny-flux1 has True"):
        check_weights("transformer", folder, spec)
    # nobody knows better than the user
    check_weights("transformer", folder, spec, spec_given=True)


def test_a_file_without_such_a_component_is_reported(tiny_flux, tmp_path):
    spec = zoo.get("tiny-flux1")
    with pytest.raises(UserError, match=r"has no config\.json"):
        check_weights("vae", tiny_flux, spec)
    with pytest.raises(UserError, match="is not a VAE"):
        check_weights("vae", tiny_flux / "transformer" / WEIGHTS, spec)
    whole = tmp_path / "whole.safetensors"
    save_file(
        {"model.diffusion_model.x": torch.zeros(1), "vae.decoder.conv_in.weight": torch.zeros(8, 16, 3, 3)},
        whole,
    )
    check_weights("vae", whole, spec)
