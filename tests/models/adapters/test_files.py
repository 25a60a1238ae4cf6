"""Adapter files of every kind onto a model by one call: what is recognised, implied, and refused."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from uhr.base.errors import UserError
from uhr.base.files import sha256_file
from uhr.models import zoo
from uhr.models.adapters import components, peft_layers
from uhr.models.adapters.conversion import lora_of
from uhr.models.adapters.files import bases, check, load_adapter, load_adapters, read, read_all
from uhr.models.adapters.formats import writing
from uhr.models.adapters.formats.keys import FLUX1, FLUX2
from uhr.models.adapters.formats.usage import Usage
from uhr.models.adapters.low_rank import LowRank
from uhr.models.adapters.masked import masks
from uhr.models.adapters.minor import MinorSpec, add_minor
from uhr.models.adapters.plain import LoraSpec, add_lora, lora_state
from uhr.models.adapters.scales import set_scale, set_scales
from uhr.models.publish.export import export_lora

TARGETS = zoo.get("tiny-flux1").lora_target_sets["attention"]
PATH = "transformer_blocks.0.attn.to_q"


def lora(paths, seed=0, rank=2):
    draw = torch.Generator().manual_seed(seed)
    return {
        path: LowRank(
            torch.randn(rank, 64, generator=draw), torch.randn(64, rank, generator=draw), float(rank)
        )
        for path in paths
    }


def save(path, values, usage=None):
    metadata = {} if usage is None else usage.metadata()
    return writing.save(values, path, writing.Format.KOHYA, FLUX1, metadata)


def urae(path, values):
    """URAE's minor factors of these modules."""
    state = {}
    for module, part in values.items():
        block, _, linear = module.removesuffix(".0").rpartition(".")
        state[f"{block}.processor.{linear}_a.weight"] = part.a.clone()
        state[f"{block}.processor.{linear}_b.weight"] = part.b.clone()
    save_file(state, path)
    return path


ATTENTION = [f"transformer_blocks.0.attn.{leaf}" for leaf in ("to_q", "to_k", "to_v", "to_out.0")]


@pytest.fixture
def style(tmp_path):
    return save(tmp_path / "style.safetensors", lora([PATH], seed=1))


@pytest.fixture
def base(tmp_path):
    return save(tmp_path / "2k.safetensors", lora(ATTENTION, seed=2))


@pytest.fixture
def factors(tmp_path):
    return urae(tmp_path / "4k.safetensors", lora(ATTENTION, seed=3))


def test_several_files_act_together_each_by_its_scale(transformer, style, base):
    files = read_all([style, base], transformer)
    assert list(files) == ["adapter_0", "adapter_1"]
    load_adapters(transformer, files, {"adapter_0": 0.5, "adapter_1": 2.0})
    assert peft_layers.active(transformer) == ["adapter_0", "adapter_1"]
    expected = 0.5 * lora([PATH], 1)[PATH].delta() + 2 * lora(ATTENTION, 2)[PATH].delta()
    torch.testing.assert_close(lora_of(transformer)[PATH].delta(), expected)


def test_minor_factors_find_the_lora_that_they_depend_on_before_them(tiny_flux, style, base, factors):
    """Whatever their scale, they were trained over it at 1. A style on fewer modules does not count."""
    implied, named = (zoo.load_transformer(tiny_flux) for _ in range(2))
    files = read_all([style, base, factors], implied)
    assert bases(files) == {"adapter_0": (), "adapter_1": (), "adapter_2": ("adapter_1",)}
    load_adapters(implied, files, {"adapter_0": 0.0, "adapter_1": 0.5, "adapter_2": 1.0})
    load_adapter(named, base, "2k")
    load_adapter(named, factors, "4k", over=["2k"])
    set_scale(named, "2k", 0.5)
    expected = lora_of(named, ["4k", "2k"])
    for path, part in lora_of(implied, ["adapter_2", "adapter_1"]).items():
        torch.testing.assert_close(part.delta(), expected[path].delta())


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (("factors",), r"4k.*on top of a 2K LoRA: give that one before it"),
        (("factors", "base"), r"on top of a 2K LoRA"),
        (("style", "factors"), r"on top of a 2K LoRA"),
        (("base", "twin", "factors"), r"both .*2k.* and .*twin.* could be .*: give any other LoRA after"),
    ],
)
def test_minor_factors_without_one_clear_base_are_refused_before_weights(
    order, message, flux_dev, tmp_path, request
):
    wide = {name: request.getfixturevalue(name) for name in ("style", "base", "factors")}
    wide["twin"] = save(tmp_path / "twin.safetensors", lora(ATTENTION, seed=4))
    with pytest.raises(UserError, match=message):
        check(read_all([wide[name] for name in order], flux_dev), flux_dev, guided=False)


def test_what_fits_and_what_does_not_is_known_without_weights(transformer, flux_dev, style):
    check(read_all([style], transformer), transformer.to("meta"), guided=False)
    with pytest.raises(UserError, match="64 x 64, this model has 3072 x 3072"):
        check(read_all([style], flux_dev), flux_dev, guided=False)


def adapted(transformer, which=None):
    """An adapter that says something on the model, and what training would export of it."""
    spec = LoraSpec(3, TARGETS, alpha=6.0)
    if which:
        own = add_minor(transformer, MinorSpec(3, TARGETS, which), None)
    else:
        own = add_lora(transformer, spec, seed=0)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in own:
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    return lora_state(transformer), spec


def call(transformer, inputs):
    with torch.no_grad():
        return transformer(**inputs)[0]


@pytest.mark.parametrize("which", ["minor", "major"])
def test_an_export_of_singular_components_is_a_lora_of_twice_the_rank(
    tiny_flux, transformer, inputs, tmp_path, facts, which
):
    """Which stock diffusers loads, and which is the same function."""
    from diffusers import FluxPipeline

    state, spec = adapted(transformer, which)
    folder = export_lora(state, spec, tmp_path / "minor", facts())
    expected = call(transformer, inputs)
    ours, stock = zoo.load_transformer(tiny_flux), FluxPipeline.from_pretrained(tiny_flux)
    assert load_adapter(ours, folder, "x").ranks == (6,)
    stock.load_lora_weights(folder)
    for model in (ours, stock.transformer):
        torch.testing.assert_close(call(model, inputs), expected, rtol=1e-4, atol=1e-4)


def test_a_checkpoints_singular_components_are_read_without_decomposing(
    tiny_flux, transformer, inputs, tmp_path, monkeypatch
):
    state, _ = adapted(transformer, "minor")
    monkeypatch.setattr(components, "decompose", None)
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / "adapter.safetensors")
    other = zoo.load_transformer(tiny_flux)
    load_adapter(other, tmp_path / "adapter.safetensors", "x")
    torch.testing.assert_close(call(other, inputs), call(transformer, inputs), rtol=1e-4, atol=1e-4)


def test_an_export_for_guide_tokens_says_so_and_is_kept_to_them(
    tiny_flux, transformer, tmp_path, facts, inputs
):
    state, spec = adapted(transformer)
    folder = export_lora(state, spec, tmp_path / "guide", facts(sampler="ultragen"), Usage(tokens="guide"))
    card = (folder / "README.md").read_text()
    assert "only on the tokens of UltraGen's guide" in card
    assert "uhr sample ultragen" in card
    assert "load_lora_weights" not in card
    other = zoo.load_transformer(tiny_flux)
    before = call(other, inputs)
    file = load_adapter(other, folder, "guide")
    assert file.usage == Usage(tokens="guide")
    with pytest.raises(UserError, match="acts on chosen tokens only"):
        call(other, inputs)
    (mask,) = masks(other)
    mask.choose()
    assert torch.equal(call(other, inputs), before)
    mask.choose(image=True, joint=True, text=True, modulation=True)
    torch.testing.assert_close(call(other, inputs), call(transformer, inputs))


def test_an_adapter_for_guide_tokens_is_refused_where_there_is_no_guide(transformer, tmp_path):
    file = save(tmp_path / "guide.safetensors", lora([PATH]), Usage(tokens="guide"))
    files = read_all([file], transformer)
    check(files, transformer, guided=True)
    with pytest.raises(UserError, match=r"acts on a guide's tokens alone.*: sample with ultragen"):
        check(files, transformer, guided=False)


def test_an_export_that_depends_on_another_needs_it_beside_it(transformer, tmp_path, base, style):
    over = Usage(over={"urae-2k": sha256_file(base)})
    file = save(tmp_path / "4k.safetensors", lora(ATTENTION), over)
    check(read_all([file, base], transformer), transformer, guided=False)
    with pytest.raises(UserError, match=r"on top of 'urae-2k' \(SHA-256 .*: give that one as well"):
        check(read_all([file, style], transformer), transformer, guided=False)


def test_an_ordinary_adapter_says_nothing_in_its_metadata(tmp_path):
    with safe_open(save(tmp_path / "a.safetensors", lora([PATH]), Usage()), "pt") as file:
        assert "uhr_adapter" not in file.metadata()


UNCLEAR = {
    "{": "not a JSON object",
    "[1]": "not a JSON object",
    '{"tokens": "some"}': "tokens",
    '{"token": 1}': "token",
}


@pytest.mark.parametrize(("entry", "message"), UNCLEAR.items())
def test_a_usage_that_is_not_understood_is_an_error(tmp_path, entry, message):
    path, form = tmp_path / "a.safetensors", writing.Format.DIFFUSERS
    with pytest.raises(UserError, match=message):
        read(writing.save(lora([PATH]), path, form, FLUX1, {"uhr_adapter": entry}), FLUX1)


def test_equal_adapters_are_equal_bytes(tmp_path):
    files = [save(tmp_path / f"{i}.safetensors", lora([PATH]), Usage(tokens="guide")) for i in range(8)]
    assert len({file.read_bytes() for file in files}) == 1


def test_flux2_has_no_clip_to_adapt(tmp_path):
    name = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    a, b = torch.zeros(2, 8), torch.zeros(8, 2)
    save_file({f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="this is flux2"):
        read(tmp_path / "a.safetensors", FLUX2)


def test_scales_choose_exactly_which_adapters_act_and_name_the_unknown(transformer, style, base):
    load_adapters(transformer, read_all([style, base], transformer), {"adapter_0": 1.0, "adapter_1": 1.0})
    set_scales(transformer, {"adapter_1": 0.25})
    assert peft_layers.active(transformer) == ["adapter_1"]
    with pytest.raises(UserError, match="adapter_2"):
        set_scales(transformer, {"adapter_2": 1.0})


def test_an_adapter_that_trains_goes_on_training_when_scales_are_set(transformer, style):
    own = add_lora(transformer, LoraSpec(2, ("to_k",)), seed=0)
    load_adapter(transformer, style, "style")
    set_scales(transformer, {"default": 0.5, "style": 1.0})
    assert peft_layers.training(transformer) == ["default"]
    assert all(parameter.requires_grad for parameter in own)
