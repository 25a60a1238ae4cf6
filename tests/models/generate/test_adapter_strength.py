"""Settings of an adapter's strength in files next to its matrices, as a command reports them."""

import json

import pytest
import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig, get_peft_model

from uhr.models.generate.record import read_record

pytestmark = pytest.mark.usefixtures("short_prompts")


def test_a_command_names_settings_that_changed_and_an_alpha_that_nothing_says(uhr, tiny_flux, tmp_path):
    folder, one, two = tmp_path / "peft", tmp_path / "one.png", tmp_path / "two.png"
    base = FluxTransformer2DModel.from_pretrained(tiny_flux / "transformer")
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["attn.to_q"], init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(folder)
    arguments = ("euler", "--model", tiny_flux, "--prompt", "a", "--size", "128x128", "--steps", 1)
    assert "note:" not in uhr(*arguments, "--adapter", folder, "--out", one).out
    (entry,) = read_record(one)["adapters"]
    assert len(entry["config"]) == 64
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "lora_alpha": 8}))
    output = uhr("--repeat", one, "--out", two)
    assert (
        f"the settings next to {folder / 'adapter_model.safetensors'} differ from the recorded ones"
        in output.err
    )
    assert "not identical" in output.out
    file.unlink()
    three = tmp_path / "three.png"
    assert "note: adapter" in uhr(*arguments, "--adapter", folder, "--out", three).out
    assert "its alpha is its rank" in read_record(three)["details"]["notes"][0]


def test_a_set_says_it_once_and_is_another_set_with_other_settings(uhr, tiny_flux, tmp_path):
    folder, out = tmp_path / "peft", tmp_path / "out"
    base = FluxTransformer2DModel.from_pretrained(tiny_flux / "transformer")
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["attn.to_q"], init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(folder)
    (tmp_path / "prompts.txt").write_text("a lake\na hill\n")
    arguments = ("euler", "--model", tiny_flux, "--prompts", tmp_path / "prompts.txt", "--size", "128x128")
    arguments = (*arguments, "--steps", 1, "--engine", "local", "--workers", 0, "--adapter", folder)
    assert "its alpha is its rank" not in uhr(*arguments, "--out", out).err
    (folder / "adapter_config.json").unlink()
    assert "contains another set: other adapters" in uhr(*arguments, "--out", out, code=1).err
    assert uhr(*arguments, "--out", tmp_path / "again").err.count("its alpha is its rank") == 1
