"""The code of docs/adapters.md runs, and does what the document says."""

import pytest
import torch

from uhr.models.adapters.files import load_adapter
from uhr.models.adapters.formats.keys import layout_of
from uhr.models.adapters.formats.writing import Format, save
from uhr.models.adapters.low_rank import LowRank
from uhr.models.zoo import load_transformer


def adapter(path, transformer, seed):
    """Write a LoRA of rank 2 on one linear."""
    name = "transformer_blocks.0.attn.to_q"
    rows, columns = transformer.get_submodule(name).weight.shape
    draw = torch.Generator().manual_seed(seed)
    lora = LowRank(torch.randn(2, columns, generator=draw), torch.randn(rows, 2, generator=draw), 2.0)
    save({name: lora}, path, Format.KOHYA, layout_of(transformer))
    return name, lora


@pytest.fixture
def ran(documents, tiny_flux, tmp_path, monkeypatch):
    """The names that the code defines, the linear, its weight before, and the two adapters."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-flux1").symlink_to(tiny_flux)
    model = load_transformer(tiny_flux)
    path, style = adapter(tmp_path / "style.safetensors", model, 1)
    _, detail = adapter(tmp_path / "detail.safetensors", model, 2)
    found = {}
    exec(compile(documents.block("python", "lora_of").text, "docs/adapters.md", "exec"), found)
    return found, path, model.get_submodule(path).weight, style, detail


def test_the_saved_sum_is_both_adapters_at_their_scales(ran, tmp_path, tiny_flux):
    _, path, _, style, detail = ran
    model = load_transformer(tiny_flux)
    load_adapter(model, tmp_path / "both.safetensors", "both")
    layer = model.get_submodule(path)
    update = layer.lora_B["both"].weight @ layer.lora_A["both"].weight * layer.scaling["both"]
    expected = 0.8 * style.b @ style.a + 0.5 * detail.b @ detail.a
    torch.testing.assert_close(update, expected, rtol=1e-4, atol=1e-5)


def test_the_weights_are_restored_after_the_merge(ran):
    found, path, before, *_ = ran
    assert torch.equal(found["pipe"].transformer.get_submodule(path).get_base_layer().weight, before)
