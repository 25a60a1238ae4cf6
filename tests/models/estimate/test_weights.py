"""Bytes of weights counted from shapes are those that are loaded, whatever the dtype or the library."""

import pytest
import torch
from torch import nn

from uhr.models import zoo
from uhr.models.estimate.memory import loading, resident, transferred
from uhr.models.estimate.shapes import empty_components, spec_named
from uhr.models.estimate.weights import WeightBytes, weight_bytes
from uhr.models.loading.model import load_component, open_model


def held(module: nn.Module) -> int:
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("spec", ["tiny-flux1", "tiny-flux2"])
def test_of_each_component_in_each_dtype(spec, dtype, tiny_flux, tiny_flux2):
    folder = {"tiny-flux1": tiny_flux, "tiny-flux2": tiny_flux2}[spec]
    for name, part in empty_components(open_model(folder)).items():
        loaded = load_component(folder, name, dtype)
        found = weight_bytes(part, getattr(torch, dtype))
        # buffers (position tables) stay in float32
        buffers = sum(t.numel() * t.element_size() for t in loaded.buffers())
        assert found.whole == pytest.approx(held(loaded), abs=max(buffers, 1))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_of_text_encoders_quantised_by_the_library_itself(kind, tiny_flux, tiny_flux2):
    """On a CPU transformers quantises, diffusers does not."""
    from transformers import BitsAndBytesConfig, Qwen3ForCausalLM, T5EncoderModel

    arguments = (
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"} if kind == "nf4" else {"load_in_8bit": True}
    )
    for cls, folder in (
        (T5EncoderModel, tiny_flux / "text_encoder_2"),
        (Qwen3ForCausalLM, tiny_flux2 / "text_encoder"),
    ):
        loaded = cls.from_pretrained(
            folder,
            quantization_config=BitsAndBytesConfig(**arguments),
            dtype=torch.bfloat16,
            device_map="cpu",
        )
        real = sum(p.numel() * p.element_size() + scales(p) for p in loaded.parameters())
        plain = cls.from_pretrained(folder)
        assert weight_bytes(plain, torch.bfloat16, kind).whole == pytest.approx(real, rel=0.001)


def scales(parameter: torch.Tensor) -> int:
    state, rows = getattr(parameter, "quant_state", None), getattr(parameter, "SCB", None)
    found = state.absmax if state is not None else rows
    return 0 if found is None else found.numel() * found.element_size()


def test_a_small_component_is_never_quantised():
    parts = empty_components(zoo.get("flux1-dev"))
    for name in ("vae", "text_encoder"):
        assert weight_bytes(parts[name], torch.bfloat16, "nf4") == weight_bytes(parts[name], torch.bfloat16)
    whole = weight_bytes(parts["transformer"], torch.bfloat16).whole
    quarter = weight_bytes(parts["transformer"], torch.bfloat16, "nf4").whole
    assert 0.28 < quarter / whole < 0.29


WEIGHTS = {
    "text_encoder": WeightBytes(10, 4),
    "transformer": WeightBytes(100, 5),
    "vae": WeightBytes(3, 1),
}


def test_each_offload_leaves_on_the_device_what_it_should():
    def there(active, offload):
        return sum(resident(WEIGHTS, active, offload).values())

    assert there("transformer", None) == there("vae", None) == 113
    # nothing drives the VAE out before the backbone comes back
    assert (there("text_encoder", "model"), there("transformer", "model"), there("vae", "model")) == (
        10,
        103,
        3,
    )
    assert there("transformer", "group") == 10
    assert there("transformer", "sequential") == 8


def test_weights_that_are_quantised_are_loaded_onto_the_device_whatever_is_offloaded():
    def there(*arguments):
        return loading(WEIGHTS, *arguments).total

    assert there("model", False, False) == 0
    assert there("model", True, False) == there(None, False, False) == there(None, True, False) == 113
    assert there("model", True, True) == 100


def test_whole_components_come_and_go_once_a_round_and_layers_at_every_call():
    assert transferred(WEIGHTS["transformer"], None, calls=9, rounds=2) == (0, False)
    assert transferred(WEIGHTS["transformer"], "model", calls=9, rounds=2) == (400, False)
    assert transferred(WEIGHTS["transformer"], "group", calls=9, rounds=2) == (900, True)
    assert transferred(WEIGHTS["transformer"], "sequential", calls=9, rounds=2) == (900, False)


def test_a_bare_name_or_a_published_hub_id_is_a_spec_and_a_folder_is_not(tmp_path, monkeypatch):
    dev = zoo.get("flux1-dev")
    assert (
        spec_named("flux1-dev")
        == spec_named("black-forest-labs/FLUX.1-dev")
        == spec_named(f"{dev.hub_id}@abc")
        == dev
    )
    assert spec_named("somebody/else") is None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flux1-dev").mkdir()
    assert spec_named("flux1-dev") is None
