"""Plain LoRA on FLUX.2: added, read out, exported, read by the stock pipeline, merged."""

import pytest
import torch

from uhr.base.errors import UserError
from uhr.models import zoo
from uhr.models.adapters.conversion import lora_of
from uhr.models.adapters.files import load_adapter
from uhr.models.adapters.formats import writing
from uhr.models.adapters.formats.keys import layout_of
from uhr.models.adapters.merging import merge
from uhr.models.adapters.plain import LoraSpec, lora_state
from uhr.models.publish.export import export_lora

SPEC = zoo.get("tiny-flux2")
MODULES = {"attention": 2 * 4 + 2, "all-linear": 2 * 12 + 2 * 2}


@pytest.fixture
def fresh(tiny_flux2, trained):
    from diffusers import Flux2KleinPipeline

    return Flux2KleinPipeline.from_pretrained(tiny_flux2, local_files_only=True)


def call(model, inputs2):
    with torch.no_grad():
        return model(**inputs2)[0]


@pytest.mark.parametrize("targets", MODULES)
def test_a_stock_pipeline_fuses_exactly_what_our_merge_gives(
    tiny_flux2, fresh, tmp_path, targets, facts, trained, inputs2
):
    lora = LoraSpec(4, SPEC.lora_target_sets[targets], alpha=2)
    model, state = trained(tiny_flux2, lora)
    base = {name: p.clone() for name, p in fresh.transformer.named_parameters()}
    folder = export_lora(state, lora, tmp_path / "adapter", facts(spec=SPEC))

    fresh.load_lora_weights(folder)
    torch.testing.assert_close(call(fresh.transformer, inputs2), call(model, inputs2), atol=1e-5, rtol=1e-5)
    fresh.fuse_lora()
    fresh.unload_lora_weights()
    fused = dict(fresh.transformer.named_parameters())
    merged = merge(model)
    paths = {key.partition(".lora_")[0] for key in state}
    assert len(paths) == MODULES[targets]
    for path in paths:
        by_hand = 2 / 4 * state[f"{path}.lora_B.weight"] @ state[f"{path}.lora_A.weight"]
        torch.testing.assert_close(
            fused[f"{path}.weight"], base[f"{path}.weight"] + by_hand, atol=1e-6, rtol=1e-6
        )
        ours = model.get_submodule(path).get_base_layer().weight
        torch.testing.assert_close(fused[f"{path}.weight"], ours, atol=1e-6, rtol=1e-6)
    for name, tensor in base.items():
        assert (name.removesuffix(".weight") in paths) != torch.equal(fused[name], tensor), name
    merged.unmerge()
    for path in paths:
        assert torch.equal(model.get_submodule(path).get_base_layer().weight, base[f"{path}.weight"])


def test_our_own_loader_reads_it_back_bitwise_with_its_alpha(
    tiny_flux2, tmp_path, facts, fresh, trained, inputs2
):
    lora = LoraSpec(4, SPEC.lora_target_sets["all-linear"], alpha=2)
    model, state = trained(tiny_flux2, lora)
    folder = export_lora(state, lora, tmp_path / "adapter", facts(spec=SPEC))
    bare = zoo.load_transformer(tiny_flux2)
    for target in (bare, fresh):
        assert load_adapter(target, folder, "lakes").ranks == (4,)
        transformer = getattr(target, "transformer", target)
        again = lora_state(transformer, "lakes")
        assert all(torch.equal(again[key], state[key]) for key in state)
        assert torch.equal(call(transformer, inputs2), call(model, inputs2))


def test_kohyas_and_comfyuis_keys_of_it_do_the_same(tiny_flux2, tmp_path, trained, inputs2):
    # attention only: diffusers' kohya reader knows the blocks' linears
    model, _ = trained(tiny_flux2, LoraSpec(4, SPEC.lora_target_sets["attention"], alpha=2))
    expected = call(model, inputs2)
    for form in (writing.Format.KOHYA, writing.Format.COMFYUI):
        file = tmp_path / f"{form}.safetensors"
        writing.save(lora_of(model), file, form, layout_of(model))
        other = zoo.load_transformer(tiny_flux2)
        load_adapter(other, file, "x")
        torch.testing.assert_close(call(other, inputs2), expected, atol=1e-5, rtol=1e-5)


def test_an_adapter_of_the_other_family_is_one_clear_line(
    tiny_flux, tiny_flux2, tmp_path, adapter, facts, trained
):
    lora = LoraSpec(4, SPEC.lora_target_sets["attention"])
    _, state = trained(tiny_flux2, lora)
    folder = export_lora(state, lora, tmp_path / "adapter", facts(spec=SPEC))
    with pytest.raises(UserError, match=r"to_qkv_mlp_proj' is .*this model has no such linear"):
        load_adapter(zoo.load_transformer(tiny_flux), folder, "x")
    with pytest.raises(UserError, match=r"this model has (no such linear|\d+ x \d+ there)"):
        load_adapter(zoo.load_transformer(tiny_flux2), adapter, "x")


def test_the_card_of_it_calls_the_stock_pipeline_correctly(tiny_flux2, tmp_path, facts, fresh, trained):
    lora = LoraSpec(4, SPEC.lora_target_sets["attention"])
    _, state = trained(tiny_flux2, lora)
    folder = export_lora(state, lora, tmp_path / "adapter", facts(spec=SPEC, guidance=None))
    card = (folder / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    code = code.replace('"path/to/the/model"', repr(str(tiny_flux2))).replace(
        "path/to/this/folder", str(folder)
    )
    code = code.replace('"image.png"', repr(str(tmp_path / "image.png")))
    code = code.replace('(prompt="a prompt"', '(prompt="a prompt", height=64, width=64')
    exec(code, {})
    assert (tmp_path / "image.png").exists()
    assert "flux2" in card
