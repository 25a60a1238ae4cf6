"""kohya's and ComfyUI's keys: exact through our own reader and through diffusers' readers."""

import json

import pytest
import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel, FluxPipeline
from safetensors.torch import save_file

from uhr.base.errors import UserError
from uhr.models.adapters.formats import reading, writing
from uhr.models.adapters.formats.keys import FLUX1, FLUX2, layout_of
from uhr.models.adapters.formats.writing import DOWN_UP, Format
from uhr.models.adapters.low_rank import LowRank

WIDTH = 3072
"""FLUX.1's real width: diffusers' kohya reader has it written in."""

QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
ADDED = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
DOUBLE = "transformer_blocks.0."
SINGLE = "single_transformer_blocks.37."
URAE = {
    **{DOUBLE + part: (WIDTH, WIDTH) for part in (*QKV, "attn.to_out.0")},
    **{SINGLE + part: (WIDTH, WIDTH) for part in QKV},
}
EVERYTHING = {
    **URAE,
    **{DOUBLE + part: (WIDTH, WIDTH) for part in (*ADDED, "attn.to_add_out")},
    DOUBLE + "ff.net.0.proj": (4 * WIDTH, WIDTH),
    DOUBLE + "ff.net.2": (WIDTH, 4 * WIDTH),
    DOUBLE + "ff_context.net.0.proj": (4 * WIDTH, WIDTH),
    DOUBLE + "ff_context.net.2": (WIDTH, 4 * WIDTH),
    DOUBLE + "norm1.linear": (6 * WIDTH, WIDTH),
    DOUBLE + "norm1_context.linear": (6 * WIDTH, WIDTH),
    SINGLE + "proj_mlp": (4 * WIDTH, WIDTH),
    SINGLE + "proj_out": (WIDTH, 5 * WIDTH),
    SINGLE + "norm.linear": (3 * WIDTH, WIDTH),
}


def read(*state):
    """The backbone's part of what our reader finds."""
    found = reading.read_state(*state)
    assert not found.clip
    return found.backbone


def load(path, layout):
    return read(*reading.read_file(path), layout, str(path))


def draw(shapes, rank=2, alpha=5.0):
    """An update per module; `rank` and `alpha` may be functions of the module's path."""
    stream = torch.Generator().manual_seed(0)
    lora = {}
    for path, (out, width) in shapes.items():
        r = rank(path) if callable(rank) else rank
        a, b = torch.randn(r, width, generator=stream), torch.randn(out, r, generator=stream)
        lora[path] = LowRank(a, b, alpha(path) if callable(alpha) else alpha)
    return lora


def same(found, expected):
    """Equal updates, compared without their dense [out, in] forms: on a few random inputs."""
    assert found.keys() == expected.keys()
    for path, part in expected.items():
        x = torch.randn(part.features[1], 4, generator=torch.Generator().manual_seed(1)).double()
        was, now = (p.scale * (p.b.double() @ (p.a.double() @ x)) for p in (part, found[path]))
        assert (now - was).norm() <= 1e-6 * was.norm(), path


def by_module(state):
    """Return what diffusers' readers read: matrices multiplied by alpha."""
    paths = [key.removesuffix(".lora_A.weight") for key in state if key.endswith("lora_A.weight")]
    return {
        path.removeprefix("transformer."): LowRank(
            state[f"{path}.lora_A.weight"],
            state[f"{path}.lora_B.weight"],
            float(state[f"{path}.lora_A.weight"].shape[0]),
        )
        for path in paths
    }


def mixed_rank(path):
    return 3 if "to_k" in path else 2


def mixed_alpha(path):
    return 1.0 if "to_v" in path else 5.0


@pytest.mark.parametrize("form", list(Format))
@pytest.mark.parametrize("shapes", [URAE, EVERYTHING], ids=["urae", "everything"])
@pytest.mark.parametrize(("rank", "alpha"), [(2, 5.0), (mixed_rank, mixed_alpha)], ids=["uniform", "mixed"])
def test_a_file_of_any_form_comes_back_exactly(tmp_path, form, shapes, rank, alpha):
    lora = draw(shapes, rank, alpha)
    found = load(writing.save(lora, tmp_path / "a.safetensors", form, FLUX1), FLUX1)
    same(found, lora)
    assert {path: part.rank for path, part in found.items()} == {p: part.rank for p, part in lora.items()}


def test_at_one_scale_nothing_is_computed_on_the_way():
    lora = draw(EVERYTHING)
    for form in Format:
        found = read(*writing.write_state(lora, form, FLUX1), FLUX1, "here")
        assert all(torch.equal(found[path].b, part.b) for path, part in lora.items())
        assert all(found[path].scale == part.scale for path, part in lora.items())


def test_the_keys_are_those_of_kohya_and_comfyui():
    lora = draw(URAE)
    kohya, _ = writing.write_state(lora, Format.KOHYA, FLUX1)
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    assert kohya[f"{name}.lora_down.weight"].shape == (6, WIDTH)
    assert kohya[f"{name}.lora_up.weight"].shape == (3 * WIDTH, 6)
    assert kohya[f"{name}.alpha"].item() == 15.0  # alpha / rank stays 5 / 2 at rank 6
    assert kohya["lora_unet_single_blocks_37_linear1.lora_up.weight"].shape == (7 * WIDTH, 6)
    comfy, _ = writing.write_state(lora, Format.COMFYUI, FLUX1)
    assert comfy["diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight"].shape == (6, WIDTH)
    assert comfy["diffusion_model.double_blocks.0.img_attn.proj.lora_B.weight"].shape == (WIDTH, 2)
    assert comfy["diffusion_model.double_blocks.0.img_attn.qkv.alpha"].item() == 15.0


def test_a_fused_b_is_block_diagonal_with_nothing_for_parts_that_are_not_adapted():
    lora = draw(URAE)
    state, _ = writing.write_state(lora, Format.KOHYA, FLUX1)
    up = state["lora_unet_single_blocks_37_linear1.lora_up.weight"]
    for i, part in enumerate(QKV):
        block = up[i * WIDTH : (i + 1) * WIDTH]
        assert torch.equal(block[:, 2 * i : 2 * i + 2], lora[SINGLE + part].b)
        block[:, 2 * i : 2 * i + 2] = 0
    assert not up.any()


@pytest.mark.parametrize("shapes", [URAE, EVERYTHING], ids=["urae", "everything"])
@pytest.mark.parametrize(("rank", "alpha"), [(2, 5.0), (4, 4.0), (4, 1.0), (mixed_rank, mixed_alpha)])
@pytest.mark.parametrize(
    ("form", "pair"), [(Format.KOHYA, None), (Format.COMFYUI, DOWN_UP)], ids=["kohya", "comfyui"]
)
def test_diffusers_reads_the_same_weights(tmp_path, shapes, rank, alpha, form, pair):
    lora = draw(shapes, rank, alpha)
    path = writing.save(lora, tmp_path / "a.safetensors", form, FLUX1, pair=pair)
    found = by_module(FluxPipeline.lora_state_dict(str(path), local_files_only=True))
    for path in set(found) - set(lora):  # diffusers copies a fused update to parts that have none of it
        assert not found.pop(path).b.any()
    same(found, lora)


def test_diffusers_leaves_comfyuis_other_spelling_of_flux1_unread():
    """Why `DOWN_UP` exists. When this fails, diffusers has learnt to read it."""
    state, _ = writing.write_state(draw(URAE), Format.COMFYUI, FLUX1)
    theirs = FluxPipeline.lora_state_dict(dict(state))
    assert not any(key.startswith("transformer.") for key in theirs)


def test_diffusers_own_form_carries_alpha_in_the_metadata_that_it_reads(tmp_path):
    lora = draw(URAE, mixed_rank, mixed_alpha)
    path = writing.save(lora, tmp_path / "a.safetensors", Format.DIFFUSERS, FLUX1, {"made_by": "a test"})
    state, metadata = FluxPipeline.lora_state_dict(
        str(path), return_lora_metadata=True, local_files_only=True
    )
    assert metadata["transformer.lora_alpha"] == 5.0
    assert metadata["transformer.alpha_pattern"] == {f"^{p}": 1.0 for p in lora if "to_v" in p}
    assert metadata["transformer.rank_pattern"] == {f"^{p}": 3 for p in lora if "to_k" in p}
    assert len(state) == 2 * len(lora)
    assert reading.read_file(path)[1]["made_by"] == "a test"


def test_alpha_is_the_rank_where_a_file_says_nothing():
    state, _ = writing.write_state(draw(URAE, rank=2, alpha=5.0), Format.DIFFUSERS, FLUX1)
    found = read(state, None, FLUX1, "here")
    assert {part.scale for part in found.values()} == {1.0}


def test_pefts_rank_stabilised_scale_is_read():
    state, metadata = writing.write_state(draw(URAE, rank=4, alpha=8.0), Format.DIFFUSERS, FLUX1)
    packed = json.loads(metadata[reading.DIFFUSERS_METADATA]) | {"transformer.use_rslora": True}
    metadata[reading.DIFFUSERS_METADATA] = json.dumps(packed)
    found = read(state, metadata, FLUX1, "here")
    assert {part.scale for part in found.values()} == {8 / 4**0.5}


def test_scale_and_shift_of_the_last_normalisation_change_places():
    lora = draw({"norm_out.linear": (2 * WIDTH, WIDTH)})
    state, _ = writing.write_state(lora, Format.KOHYA, FLUX1)
    up = state["lora_unet_final_layer_adaLN_modulation_1.lora_up.weight"]
    assert torch.equal(up[:WIDTH], lora["norm_out.linear"].b[WIDTH:])
    same(read(state, None, FLUX1, "here"), lora)


def test_every_linear_of_flux1_has_a_name_of_bfls_and_comes_back(flux_dev):
    check_every_linear(flux_dev, FLUX1, expected=19 * 14 + 38 * 6 + 10)


def test_every_linear_of_flux2_has_a_name_of_bfls_and_comes_back():
    with torch.device("meta"):
        model = Flux2Transformer2DModel()
    check_every_linear(model, FLUX2, expected=8 * 12 + 48 * 2 + 11)


def check_every_linear(model, layout, expected):
    assert layout_of(model) is layout
    shapes = {
        path: (module.out_features, module.in_features)
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert len(shapes) == expected
    tall = {path: (out, 1) for path, (out, _) in shapes.items()}
    held = {}
    for name, (prefix, entry) in layout.linears(tall).items():
        assert layout.locate(name) == (prefix, entry)
        assert layout.locate(name.replace(".", "_")) == (prefix, entry)
        parts = [prefix + part for part in entry.parts]
        rows = sum(shapes[part][0] for part in parts)
        assert entry.outs(rows, shapes[parts[0]][1]) == [shapes[part][0] for part in parts]
        assert len({shapes[part][1] for part in parts}) == 1
        held |= dict.fromkeys(parts, name)
    assert held.keys() == shapes.keys()


def test_flux2s_kohya_file_is_read_by_diffusers():
    lora = draw(
        {
            **{f"transformer_blocks.1.{part}": (64, 64) for part in (*QKV, *ADDED)},
            "transformer_blocks.1.ff.linear_in": (384, 64),
            "single_transformer_blocks.2.attn.to_qkv_mlp_proj": (576, 64),
            "single_transformer_blocks.2.attn.to_out": (64, 256),
        }
    )
    state, _ = writing.write_state(lora, Format.KOHYA, FLUX2)
    same(by_module(Flux2KleinPipeline.lora_state_dict(dict(state))), lora)
    same(read(state, None, FLUX2, "here"), lora)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("lora_unet_double_blocks_0_img_attn_proj.dora_scale", "dora_scale"),
        ("lora_unet_double_blocks_0_img_attn_proj.lokr_w1", "lokr_w1"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "lacks A or B"),
        ("lora_unet_middle_block_1.lora_down.weight", "lacks A or B"),
    ],
)
def test_what_is_not_understood_is_an_error_that_names_it(key, message):
    state, _ = writing.write_state(draw(URAE), Format.KOHYA, FLUX1)
    with pytest.raises(UserError, match=message):
        read(state | {key: torch.zeros(2, 4)}, None, FLUX1, "here")


def test_a_lora_of_another_backbone_is_an_error_that_names_the_module():
    state = {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.zeros(2, 8),
             "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": torch.zeros(25, 2)}  # fmt: skip
    with pytest.raises(UserError, match="img_attn_qkv"):
        read(state, None, FLUX1, "here")
    strange = {key.replace("double", "input"): tensor for key, tensor in state.items()}
    with pytest.raises(UserError, match="input_blocks"):
        read(strange, None, FLUX1, "here")


def test_a_module_without_a_name_of_bfls_cannot_be_written():
    with pytest.raises(UserError, match=r"attn\.to_w"):
        writing.write_state(draw({DOUBLE + "attn.to_w": (8, 8)}), Format.KOHYA, FLUX1)


def test_a_file_that_is_no_safetensors_file_is_an_error(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"not one")
    with pytest.raises(UserError, match="cannot be read"):
        load(path, FLUX1)


def test_one_module_in_two_spellings_is_an_error(tmp_path):
    lora = draw({DOUBLE + "attn.to_out.0": (8, 8)})
    both = (
        writing.write_state(lora, Format.KOHYA, FLUX1)[0]
        | writing.write_state(lora, Format.DIFFUSERS, FLUX1)[0]
    )
    save_file(both, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="twice"):
        load(tmp_path / "a.safetensors", FLUX1)


def test_diffusers_hands_kohyas_modules_outside_the_blocks_to_nobody():
    """Why our own reader comes first. When this fails, diffusers has learnt to load them."""
    lora = draw({"x_embedder": (WIDTH, 64), **URAE})
    state, _ = writing.write_state(lora, Format.KOHYA, FLUX1)
    theirs = FluxPipeline.lora_state_dict(dict(state))
    assert [key for key in theirs if "x_embedder" in key and key.startswith("transformer.")] == []
    same(read(state, None, FLUX1, "here"), lora)
