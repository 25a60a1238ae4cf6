"""A backbone in a GGUF file: its weights stay quantised, and adapters work on them."""

import re
import sys

import gguf
import pytest
import torch
from diffusers.quantizers.gguf.utils import GGUFLinear, dequantize_gguf_tensor
from gguf import GGMLQuantizationType as Kind

from uhr.base.errors import UserError
from uhr.models import zoo
from uhr.models.adapters import peft_layers
from uhr.models.adapters.files import load_adapter
from uhr.models.adapters.formats.keys import FLUX2
from uhr.models.adapters.merging import merge
from uhr.models.adapters.plain import LoraSpec
from uhr.models.publish.export import export_lora

ERRORS = {Kind.F16: 2e-3, Kind.Q8_0: 3e-2, Kind.Q4_0: 0.5}
"""How far off an output is at most, over its own size."""

NORMS = {"norm_q": "query", "norm_k": "key", "norm_added_q": "query", "norm_added_k": "key"}


def named(model):
    """FLUX.2's weights in BFL's names."""
    state, found = dict(model.state_dict()), {}
    linears = [path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    for name, (prefix, entry) in FLUX2.linears(linears).items():
        whole = torch.cat([state.pop(f"{prefix}{part}.weight") for part in entry.parts])
        found[f"{name}.weight"] = torch.cat(whole.chunk(2)[::-1]) if entry.swapped else whole
    for key, tensor in state.items():
        blocks, index, _, norm, _ = key.split(".")
        stream = "" if blocks.startswith("single") else "txt_attn." if "added" in norm else "img_attn."
        block = f"{'single' if blocks.startswith('single') else 'double'}_blocks.{index}"
        found[f"{block}.{stream}norm.{NORMS[norm]}_norm.scale"] = tensor
    return found


def write(path, model, kind):
    """Matrices in that kind, norms in float32, as published files have them."""
    writer = gguf.GGUFWriter(path, "flux")
    for name, tensor in named(model).items():
        values = tensor.float().numpy()
        if tensor.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def call(model, inputs2):
    with torch.no_grad():
        return model(**inputs2)[0]


@pytest.fixture
def model(tiny_flux2):
    return zoo.load_transformer(tiny_flux2)


def off(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.name)
def test_a_gguf_backbone_computes_what_it_was_made_of(tiny_flux2, model, tmp_path, kind, inputs2):
    found = zoo.load_component(tiny_flux2, "transformer", weights=write(tmp_path / "t.gguf", model, kind))
    stored = found.transformer_blocks[0].attn.to_q.weight
    assert type(stored).__name__ == ("GGUFParameter" if kind is not Kind.F16 else "Parameter")
    assert off(call(found, inputs2), call(model, inputs2)) < ERRORS[kind]


def test_an_adapter_acts_beside_quantised_weights_as_beside_their_values(
    tiny_flux2, model, tmp_path, facts, trained, inputs2
):
    spec = zoo.get("tiny-flux2")
    lora = LoraSpec(2, spec.lora_target_sets["all-linear"])
    _, state = trained(tiny_flux2, lora)
    folder = export_lora(state, lora, tmp_path / "adapter", facts(spec=spec))
    file, exact = write(tmp_path / "t.gguf", model, Kind.Q8_0), model
    found = zoo.load_component(tiny_flux2, "transformer", weights=file)
    before = call(found, inputs2)
    for adapted in (found, exact):
        load_adapter(adapted, folder, "x")
    with torch.no_grad():
        for path, module in found.named_modules():
            if isinstance(module, GGUFLinear) and not path.endswith("base_layer"):
                exact.get_submodule(path).weight.copy_(dequantize_gguf_tensor(module.weight))
        for path, layer in peft_layers.layers_of(found, "x").items():
            exact.get_submodule(path).get_base_layer().weight.copy_(peft_layers.base_weight(layer))
    assert off(call(found, inputs2), before) > 0.1
    torch.testing.assert_close(call(found, inputs2), call(exact, inputs2), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="cannot be merged into quantised weights"):
        merge(found)


CHANGES = {
    "lacks transformer_blocks.0.ff.linear_in.weight": lambda state: state.pop(
        "double_blocks.0.img_mlp.0.weight"
    ),
    "contains strange.weight": lambda state: state.update({"strange.weight": torch.zeros(32, 32)}),
}


@pytest.mark.parametrize(("message", "change"), CHANGES.items(), ids=CHANGES)
def test_a_gguf_file_that_is_not_whole_is_refused_and_the_weight_named(
    tiny_flux2, model, tmp_path, monkeypatch, message, change
):
    state = named(model)
    change(state)
    monkeypatch.setattr(sys.modules[__name__], "named", lambda model: state)
    file = write(tmp_path / "t.gguf", model, Kind.Q8_0)
    with pytest.raises(UserError, match=rf"transformer file .*t\.gguf {re.escape(message)}"):
        zoo.load_component(tiny_flux2, "transformer", weights=file)
