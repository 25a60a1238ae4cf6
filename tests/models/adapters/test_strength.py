"""The strength of an adapter, from other places than its matrices: peft's settings, diffusers' metadata, the
header."""

import copy
import json

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from uhr.base.errors import UserError
from uhr.models.adapters import peft_layers
from uhr.models.adapters.files import load_adapter, read
from uhr.models.adapters.formats.keys import FLUX1

TARGETS = ["attn.to_q", "attn.to_k", "norm.linear", "ff.net.2"]
PATH = "transformer_blocks.0.attn.to_q"


@pytest.fixture(scope="module")
def base(tiny_flux):
    return FluxTransformer2DModel.from_pretrained(tiny_flux / "transformer")


def trained(base, folder, **settings):
    """A folder as peft itself saves it, of an adapter whose every module changes the output."""
    config = LoraConfig(**{"r": 4, "lora_alpha": 16, "target_modules": TARGETS, **settings})
    model = get_peft_model(copy.deepcopy(base), config)
    draw = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    model.save_pretrained(folder)
    return folder


def pefts_own(base, folder):
    """Return what peft adds to each weight when it merges the folder."""
    merged = PeftModel.from_pretrained(copy.deepcopy(base), folder).merge_and_unload().state_dict()
    return {
        key.removesuffix(".weight"): merged[key] - value
        for key, value in base.state_dict().items()
        if not torch.equal(merged[key], value)
    }


def ours(base, path):
    model = copy.deepcopy(base)
    load_adapter(model, path, "x")
    layers = peft_layers.layers_of(model, "x")
    return {module: peft_layers.delta_weight(layer, "x") for module, layer in layers.items()}


SETTINGS = {
    "alpha four times the rank": {},
    "alpha left to its default": {"lora_alpha": 8},
    "a fraction": {"lora_alpha": 2.5},
    "rank-stabilised": {"use_rslora": True},
    "alpha by module": {"alpha_pattern": {"attn.to_k": 2, r"^transformer_blocks\.1\.attn\.to_q": 32}},
    "rank by module": {"rank_pattern": {"to_q": 2, r"single_transformer_blocks\.\d+\.norm\.linear": 8}},
    "everything by module, rank-stabilised": {
        "use_rslora": True,
        "rank_pattern": {"to_q": 2, "norm.linear": 8},
        "alpha_pattern": {"to_q": 1, "net.2": 5},
    },
    "a start that leaves the base alone": {"init_lora_weights": "gaussian"},
    "dropout, which acts in training": {"lora_dropout": 0.5},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("named", ["folder", "file"])
def test_pefts_own_folder_acts_as_strongly_as_in_peft(base, tmp_path, settings, named):
    folder = trained(base, tmp_path, **settings)
    expected = pefts_own(base, folder)
    found = ours(base, folder if named == "folder" else folder / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    for path, delta in found.items():
        torch.testing.assert_close(delta, expected[path], rtol=1e-4, atol=1e-5)


def change(folder, **values):
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, **values}))
    return folder


def test_what_a_configuration_leaves_out_is_pefts_default(base, tmp_path):
    folder = trained(base, tmp_path, r=4)
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    del config["lora_alpha"]
    file.write_text(json.dumps(config))
    torch.testing.assert_close(ours(base, folder)[PATH], pefts_own(base, folder)[PATH], rtol=1e-4, atol=1e-5)


NOT_PLAIN = {
    "use_dora": True,
    "bias": "all",
    "fan_in_fan_out": True,
    "modules_to_save": ["proj_out"],
    "lora_bias": True,
    "init_lora_weights": "pissa",
    "trainable_token_indices": [1],
    "layer_replication": [[0, 1]],
    "peft_type": "LOHA",
    "use_qalora": True,
    "target_parameters": ["x_embedder.weight"],
    "kasa_config": {"beta": 1e-4},
    "alora_invocation_tokens": [1, 2],
    "megatron_config": {"x": 1},
    "a_key_of_next_year": {"on": True},
}


@pytest.mark.parametrize(("key", "value"), NOT_PLAIN.items())
def test_what_is_no_plain_lora_is_refused_in_one_line_that_names_the_key(base, tmp_path, key, value):
    folder = change(trained(base, tmp_path), **{key: value})
    with pytest.raises(UserError, match=rf"adapter_config\.json has (the unknown key )?{key}") as raised:
        read(folder, FLUX1)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("start", ["pissa_niter_4", "olora", "OLoRA", "corda", "loftq", "lora_ga"])
def test_a_start_that_was_taken_out_of_the_base_is_refused(base, tmp_path, start):
    folder = change(trained(base, tmp_path), init_lora_weights=start)
    with pytest.raises(UserError, match="base weights that were changed: have peft convert it"):
        read(folder, FLUX1)


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
def test_any_other_start_is_read(base, tmp_path, start):
    assert read(change(trained(base, tmp_path), init_lora_weights=start), FLUX1).lora[PATH].scale == 4


def test_a_pissa_adapter_that_peft_converted_is_read(base, tmp_path):
    """Its configuration is that of a plain LoRA of twice the rank, and so are its matrices."""
    start = tmp_path / "start"
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["attn.to_q"], init_lora_weights="pissa")
    model = get_peft_model(copy.deepcopy(base), config)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(start)
    model.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 0.1
    folder = tmp_path / "converted"
    model.save_pretrained(folder, path_initial_model_for_weight_conversion=str(start))
    torch.testing.assert_close(ours(base, folder)[PATH], pefts_own(base, folder)[PATH], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("value", [None, False, [], {}])
def test_a_key_of_a_newer_peft_that_is_off_is_no_obstacle(base, tmp_path, value):
    assert read(change(trained(base, tmp_path), a_key_of_next_year=value), FLUX1).lora[PATH].scale == 4


UNREADABLE = {
    "lora_alpha": ["16", None, float("nan"), float("inf"), True],
    "r": [0, -1, 2.5, "4", None],
    "alpha_pattern": [{"(": 3}, {"to_q": "2"}, [1]],
    "rank_pattern": [{"to_q": 0}],
    "use_rslora": ["yes", 1],
}
VALUES = [(key, value) for key, values in UNREADABLE.items() for value in values]


@pytest.mark.parametrize(("key", "value"), VALUES, ids=str)
def test_a_setting_that_is_no_number_is_refused(base, tmp_path, key, value):
    with pytest.raises(UserError, match=r"adapter_config\.json has"):
        read(change(trained(base, tmp_path), **{key: value}), FLUX1)


def test_settings_of_another_rank_are_another_adapters(base, tmp_path):
    folder = change(trained(base, tmp_path), r=16)
    with pytest.raises(UserError, match=r"has rank 16 for .* have rank 4"):
        read(folder, FLUX1)


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff"])
def test_settings_that_cannot_be_read_are_refused(base, tmp_path, text):
    folder = trained(base, tmp_path)
    (folder / "adapter_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        read(folder, FLUX1)


def bare(prefix, rank=4, alpha=None, a="lora_A", b="lora_B", paths=(PATH,)):
    draw = torch.Generator().manual_seed(1)
    state = {}
    for path in paths:
        state[f"{prefix}{path}.{a}.weight"] = torch.randn(rank, 64, generator=draw)
        state[f"{prefix}{path}.{b}.weight"] = torch.randn(64, rank, generator=draw)
        if alpha is not None:
            state[f"{prefix}{path}.alpha"] = torch.tensor(float(alpha))
    return state


def saved(path, state, **header):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, metadata={"format": "pt", **header})
    return path


def scale_of(path):
    return read(path, FLUX1).lora[PATH].scale


@pytest.mark.parametrize("prefix", ["base_model.model.", "transformer.", "", "diffusion_model."])
def test_a_file_that_says_no_alpha_is_read_at_its_rank_and_says_so(base, tmp_path, prefix):
    file = saved(tmp_path / "a.safetensors", bare(prefix))
    found = read(file, FLUX1)
    assert found.lora[PATH].scale == 1
    (note,) = found.notes
    assert note.startswith(f"adapter {file}: it has no alpha, so that its alpha is its rank;")
    with pytest.warns(UserWarning, match="its alpha is its rank"):
        load_adapter(copy.deepcopy(base), file, "x")


def test_a_file_beside_anothers_settings_is_not_read_by_them(base, tmp_path):
    """In a folder of downloads: a configuration is peft's file's."""
    folder = trained(base, tmp_path)
    style = saved(folder / "style.safetensors", bare("transformer."))
    assert scale_of(style) == 1
    assert scale_of(folder / "adapter_model.safetensors") == 4
    renamed = (folder / "adapter_model.safetensors").rename(folder / "lakes.safetensors")
    assert scale_of(renamed) == 4, "its keys are peft's"


def test_settings_beside_an_adapter_whose_keys_lost_pefts_prefix_are_its_own(base, tmp_path):
    folder = trained(base, tmp_path)
    state = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    saved(folder / "a.safetensors", {k.removeprefix("base_model.model."): v for k, v in state.items()})
    assert scale_of(folder) == 4


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_diffusers_own_files_act_as_strongly_as_in_diffusers(base, tiny_flux, tmp_path, prefix):
    """Both for a pipeline and for a bare transformer, whose metadata has no prefix."""
    model = copy.deepcopy(base)
    model.add_adapter(LoraConfig(r=4, lora_alpha=10, target_modules=TARGETS, alpha_pattern={"to_k": 3},
                                 use_rslora=True, init_lora_weights=False), "default")  # fmt: skip
    expected = {
        path: layer.get_delta_weight("default")
        for path, layer in peft_layers.layers_of(model, "default").items()
    }
    if prefix:
        from diffusers.utils import convert_state_dict_to_diffusers
        from peft import get_peft_model_state_dict

        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(model))
        config = {"transformer_lora_adapter_metadata": model.peft_config["default"].to_dict()}
        FluxPipeline.save_lora_weights(tmp_path, transformer_lora_layers=layers, **config)
    else:
        model.save_lora_adapter(tmp_path)
    for path, delta in ours(base, tmp_path).items():
        torch.testing.assert_close(delta, expected[path])


def test_diffusers_metadata_of_what_is_no_plain_lora_is_refused(base, tmp_path):
    model = copy.deepcopy(base)
    model.add_adapter(LoraConfig(r=4, target_modules=["to_q"]), "default")
    model.peft_config["default"].use_dora = True
    model.save_lora_adapter(tmp_path)
    with pytest.raises(UserError, match="lora_adapter_metadata has use_dora True"):
        read(tmp_path, FLUX1)


HEADERS = {
    "lora_alpha": {"lora_alpha": "16"},
    "alpha": {"alpha": "16.0"},
    "network_alpha, with its rank": {"network_alpha": "16", "network_dim": "4"},
    "with a prefix": {"transformer.lora_alpha": "16", "transformer.r": "4"},
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_alpha_in_the_header_is_read(tmp_path, header):
    found = read(saved(tmp_path / "a.safetensors", bare("diffusion_model."), **header), FLUX1)
    assert found.lora[PATH].scale == 4
    assert found.notes == ()


KOHYA = "lora_unet_double_blocks_0_img_attn_proj"
OUT = "transformer_blocks.0.attn.to_out.0"


def kohya(alpha=None, rank=4):
    down, up = torch.ones(rank, 64), torch.ones(64, rank)
    state = {f"{KOHYA}.lora_down.weight": down, f"{KOHYA}.lora_up.weight": up}
    return state if alpha is None else {**state, f"{KOHYA}.alpha": torch.tensor(float(alpha))}


def test_kohyas_alpha_is_the_modules_own_or_else_the_headers(tmp_path):
    """Its own may differ from the header's, by block."""
    header = {"ss_network_alpha": "2", "ss_network_dim": "4", "ss_network_module": "networks.lora_flux"}
    both = read(saved(tmp_path / "a.safetensors", kohya(1), **header), FLUX1)
    assert (both.lora[OUT].scale, both.notes) == (0.25, ())
    alone = read(saved(tmp_path / "b.safetensors", kohya(), **header), FLUX1)
    assert alone.lora[OUT].scale == 0.5
    assert alone.notes[0].endswith("it has no alpha tensors; its metadata has alpha 2")


def test_kohyas_header_is_not_of_keys_that_its_converter_made(tmp_path):
    """The official converter to diffusers' keys multiplies alpha into the matrices and keeps the header."""
    file = saved(tmp_path / "a.safetensors", bare("transformer."), ss_network_alpha="2", ss_network_dim="4")
    found = read(file, FLUX1)
    assert found.lora[PATH].scale == 1
    assert "its ss_network_alpha 2 is for kohya's keys" in found.notes[0]


OTHER = "transformer_blocks.1.attn.to_q"
TORN = bare("diffusion_model.", alpha=8) | bare("diffusion_model.", paths=[OTHER])
PACKED = {"lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 16})}
DISAGREE = {
    "a tensor and diffusers' metadata": (bare("transformer.", alpha=8), PACKED, "tensor has alpha 8 .* 16"),
    "the header and diffusers' metadata": (bare("transformer."), {**PACKED, "alpha": "4"}, "alpha 16 .* 4"),
    "the header with itself": (bare(""), {"alpha": "4", "lora_alpha": "8"}, "lora_alpha 8 and alpha 4"),
    "the header's rank": (bare(""), {"alpha": "4", "rank": "16"}, "has rank 16, and .* has rank 4"),
    "kohya's rank": (kohya(), {"ss_network_alpha": "4", "ss_network_dim": "16"}, "rank 16, and .* rank 4"),
    "some modules have alpha": (TORN, {}, "blocks.1.attn.to_q' has no alpha, and other modules have one"),
    "no number": (bare(""), {"lora_alpha": "many"}, "lora_alpha 'many': it must be a number"),
    "a tensor that is none": (bare("transformer.", alpha=float("nan")), {}, "is nan"),
    "rank-stabilised": (bare(""), {"alpha": "4", "use_rslora": "true"}, "use_rslora true"),
}  # fmt: skip


@pytest.mark.parametrize(("state", "header", "message"), DISAGREE.values(), ids=DISAGREE)
def test_facts_that_disagree_are_refused(tmp_path, state, header, message):
    with pytest.raises(UserError, match=message):
        read(saved(tmp_path / "a.safetensors", state, **header), FLUX1)
