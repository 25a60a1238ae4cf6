"""LoRA files that others wrote: read whole, or refused with the reason."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import FluxPipeline
from hypothesis import given, strategies
from safetensors.torch import save_file

from uhr.base.errors import UserError
from uhr.models.adapters import peft_layers
from uhr.models.adapters.conversion import lora_of
from uhr.models.adapters.files import load_adapter
from uhr.models.adapters.formats import reading, writing
from uhr.models.adapters.formats.keys import FLUX1
from uhr.models.adapters.low_rank import LowRank
from uhr.models.adapters.scales import set_scales

PATH = "transformer_blocks.0.attn.to_q"


def matrices(rank=2, width=64, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rank, width, generator=draw), torch.randn(width, rank, generator=draw)


def write(path, tensors, **metadata):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {key: t.contiguous() for key, t in tensors.items()}, path, metadata={"format": "pt", **metadata}
    )
    return path


def delta(transformer, name="x"):
    layer = transformer.get_submodule(PATH)
    return layer.get_delta_weight(name)


def test_a_diffusers_file_without_metadata_has_alpha_equal_to_rank(transformer, tmp_path):
    a, b = matrices()
    file = write(
        tmp_path / "l.safetensors",
        {f"transformer.{PATH}.lora_A.weight": a, f"transformer.{PATH}.lora_B.weight": b},
    )
    load_adapter(transformer, file, "x")
    torch.testing.assert_close(delta(transformer), b @ a)


def test_a_kohya_file_brings_its_alpha_per_module(transformer, tmp_path):
    draw = torch.Generator().manual_seed(1)
    down, up = torch.randn(2, 64, generator=draw), torch.randn(3 * 64, 2, generator=draw)
    fused = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {
        f"{fused}.lora_down.weight": down,
        f"{fused}.lora_up.weight": up,
        f"{fused}.alpha": torch.tensor(1.0),
    }
    load_adapter(transformer, write(tmp_path / "kohya.safetensors", tensors), "x")
    for i, name in enumerate(("to_q", "to_k", "to_v")):
        layer = transformer.get_submodule(f"transformer_blocks.0.attn.{name}")
        torch.testing.assert_close(layer.get_delta_weight("x"), 0.5 * up[64 * i : 64 * (i + 1)] @ down)


def test_a_kohya_file_is_read_at_any_width_and_refused_at_a_wrong_one(transformer, tmp_path):
    """diffusers' own reader takes FLUX.1-dev's alone."""
    draw = torch.Generator().manual_seed(1)
    down, up = torch.randn(2, 64, generator=draw), torch.randn(7 * 64, 2, generator=draw)
    fused = "lora_unet_single_blocks_0_linear1"
    tensors = {f"{fused}.lora_down.weight": down, f"{fused}.lora_up.weight": up}
    load_adapter(transformer, write(tmp_path / "kohya.safetensors", tensors), "x")
    layer = transformer.get_submodule("single_transformer_blocks.0.proj_mlp")
    torch.testing.assert_close(layer.get_delta_weight("x"), up[3 * 64 :] @ down)
    wrong = tensors | {f"{fused}.lora_up.weight": up[:-1]}
    with pytest.raises(UserError, match=r"linear1' has 447 rows, not 448"):
        load_adapter(transformer, write(tmp_path / "wrong.safetensors", wrong), "y")


def test_a_half_precision_file_loses_no_digit_to_its_alpha(transformer, tmp_path):
    """diffusers' own reader multiplies by alpha / rank in the file's dtype."""
    a, b = (t.bfloat16() for t in matrices(rank=3))
    name = "lora_unet_double_blocks_0_img_attn_proj"
    tensors = {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b, f"{name}.alpha": torch.tensor(1.0)}
    load_adapter(transformer, write(tmp_path / "l.safetensors", tensors), "x")
    layer = transformer.get_submodule("transformer_blocks.0.attn.to_out.0")
    assert torch.equal(layer.lora_A["x"].weight, a.float())
    assert torch.equal(layer.lora_B["x"].weight, b.float())
    assert layer.scaling["x"] == 1 / 3


def drawn(shapes, down, up):
    """A and B of every module [out, in] of `shapes`, in these two spellings."""
    draw, state = torch.Generator().manual_seed(2), {}
    for name, (out, width) in shapes.items():
        state[f"{name}.{down}"] = torch.randn(2, width, generator=draw)
        state[f"{name}.{up}"] = torch.randn(out, 2, generator=draw)
    return state


def xlabs():
    shapes = {
        "double_blocks.0.processor.qkv_lora1": (192, 64),
        "double_blocks.0.processor.proj_lora2": (64, 64),
        "double_blocks.1.processor.qkv_lora2": (192, 64),
        "double_blocks.1.processor.proj_lora1": (64, 64),
        "single_blocks.0.processor.qkv_lora": (192, 64),
        "single_blocks.1.processor.proj_lora": (64, 320),
    }
    return drawn(shapes, "down.weight", "up.weight")


def onetrainer():
    shapes = {
        "lora_transformer_single_transformer_blocks_0_attn_to_k": (64, 64),
        "lora_transformer_transformer_blocks_1_attn_to_out_0": (64, 64),
        "lora_transformer_transformer_blocks_0_attn_add_v_proj": (64, 64),
        "lora_transformer_x_embedder": (64, 64),
        "lora_transformer_time_text_embed_timestep_embedder_linear_1": (64, 256),
    }
    alphas = {f"{name}.alpha": torch.tensor(1.0) for name in shapes}
    return drawn(shapes, "lora_down.weight", "lora_up.weight") | alphas


@pytest.mark.parametrize("make", [xlabs, onetrainer])
def test_other_makers_files_are_what_diffusers_makes_of_them(transformer, tmp_path, make):
    theirs = FluxPipeline.lora_state_dict(dict(make()))
    paths = {key.partition(".lora_")[0] for key in theirs}
    load_adapter(transformer, write(tmp_path / "l.safetensors", make()), "x")
    ours = lora_of(transformer, ["x"])
    assert {path.removeprefix("transformer.") for path in paths} == ours.keys()
    for path in paths:
        expected = theirs[f"{path}.lora_B.weight"] @ theirs[f"{path}.lora_A.weight"]
        torch.testing.assert_close(ours[path.removeprefix("transformer.")].delta(), expected)


def test_pefts_own_prefix_and_adapter_name_are_understood(transformer, tmp_path):
    a, b = matrices()
    key = f"base_model.model.{PATH}"
    tensors = {f"{key}.lora_A.default.weight": a, f"{key}.lora_B.default.weight": b}
    load_adapter(transformer, write(tmp_path / "l.safetensors", tensors), "x")
    torch.testing.assert_close(delta(transformer), b @ a)


def test_weights_of_a_half_precision_file_are_float32_on_the_model(transformer, tmp_path):
    a, b = (t.bfloat16() for t in matrices())
    file = write(
        tmp_path / "l.safetensors",
        {f"transformer.{PATH}.lora_A.weight": a, f"transformer.{PATH}.lora_B.weight": b},
    )
    load_adapter(transformer, file, "x")
    assert transformer.get_submodule(PATH).lora_A["x"].weight.dtype == torch.float32


def test_a_key_of_another_backbone_is_an_error_and_not_a_silent_loss(transformer, tmp_path):
    a, b = matrices()
    path = "transformer.transformer_blocks.18.attn.to_q"
    file = write(tmp_path / "l.safetensors", {f"{path}.lora_A.weight": a, f"{path}.lora_B.weight": b})
    with pytest.raises(UserError, match=r"blocks\.18\.attn\.to_q' is 64 x 64, this model has no such"):
        load_adapter(transformer, file, "x")
    assert not hasattr(transformer, "peft_config")


def test_a_width_of_another_backbone_is_an_error(transformer, tmp_path):
    a, b = matrices(width=48)
    file = write(
        tmp_path / "l.safetensors",
        {f"transformer.{PATH}.lora_A.weight": a, f"transformer.{PATH}.lora_B.weight": b},
    )
    with pytest.raises(UserError, match="is 48 x 48, this model has 64 x 64 there"):
        load_adapter(transformer, file, "x")


def with_clip(name, a="lora_A", b="lora_B"):
    """A file that changes CLIP's first layer and the backbone."""
    down, up = matrices(width=32, seed=3)
    rest = drawn({f"transformer.{PATH}": (64, 64)}, "lora_A.weight", "lora_B.weight")
    return {f"{name}.{a}.weight": down, f"{name}.{b}.weight": up, **rest}


CLIP = "encoder.layers.0.self_attn.q_proj"
SPELLINGS = {
    "diffusers": with_clip(f"text_encoder.text_model.{CLIP}"),
    "flat": with_clip(f"text_encoder.{CLIP}"),
    "kohya": with_clip("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", "lora_down", "lora_up"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_part_for_clip_acts_on_clip_at_its_scale(tiny_flux, tmp_path, spelling):
    pipeline = FluxPipeline.from_pretrained(tiny_flux, local_files_only=True)
    ids = torch.arange(1, 9)[None]

    def embed():
        with torch.no_grad():
            return pipeline.text_encoder(ids).last_hidden_state

    before = embed()
    file = write(tmp_path / "l.safetensors", SPELLINGS[spelling])
    load_adapter(pipeline, file, "x", scale=0.5)
    (path,) = peft_layers.layers_of(pipeline.text_encoder, "x")
    assert path.endswith(CLIP)
    layer = pipeline.text_encoder.get_submodule(path)
    down, up = matrices(width=32, seed=3)
    torch.testing.assert_close(layer.get_delta_weight("x"), 0.5 * up @ down)
    assert not torch.allclose(embed(), before, atol=1e-4)
    set_scales(pipeline, {"x": 0.0})
    torch.testing.assert_close(embed(), before)


def test_clips_part_is_what_diffusers_loads(tiny_flux, tmp_path):
    file = write(tmp_path / "l.safetensors", SPELLINGS["diffusers"])
    found = []
    for load in (lambda p: p.load_lora_weights(file, adapter_name="x"), lambda p: load_adapter(p, file, "x")):
        pipeline = FluxPipeline.from_pretrained(tiny_flux, local_files_only=True)
        load(pipeline)
        with torch.no_grad():
            found.append(pipeline.text_encoder(torch.arange(1, 9)[None]).last_hidden_state)
    torch.testing.assert_close(found[0], found[1])


def test_a_part_for_clip_needs_a_pipeline(transformer, tmp_path):
    file = write(tmp_path / "l.safetensors", SPELLINGS["diffusers"])
    with pytest.raises(UserError, match="also changes CLIP"):
        load_adapter(transformer, file, "x")
    assert peft_layers.names(transformer) == []


T5 = ("text_encoder_2.encoder.block.0.layer.0.SelfAttention.q", "lora_te3_encoder_block_0")


@pytest.mark.parametrize("name", T5)
def test_a_part_for_t5_is_refused(transformer, tmp_path, name):
    with pytest.raises(UserError, match="also changes a text encoder"):
        load_adapter(transformer, write(tmp_path / "l.safetensors", with_clip(name)), "x")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.safetensors", "is not there"),
        (
            lambda folder: (folder / "x.ckpt").write_bytes(b"pickle") and folder / "x.ckpt",
            "x.ckpt is a pickle by its name",
        ),
        (lambda folder: folder, r"must contain one safetensors file \(found: none\)"),
        (lambda folder: (folder / "x.safetensors").write_bytes(b"junk") and folder, r"is text, .*\(junk\)"),
        (
            lambda folder: write(folder / "x.safetensors", {"unet.a": torch.zeros(1)}),
            "unknown key 'unet.a'",
        ),
    ],
)
def test_what_is_no_adapter_is_one_clear_line(transformer, tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        load_adapter(transformer, make(tmp_path), "x")


def test_two_files_in_a_folder_are_ambiguous(transformer, tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.safetensors", {"x": torch.zeros(1)})
    with pytest.raises(UserError, match=r"a\.safetensors, b\.safetensors"):
        load_adapter(transformer, tmp_path, "x")


@pytest.mark.parametrize("half", ["lora_A", "lora_B"])
@pytest.mark.parametrize("change", [lambda tensor: tensor.to(torch.int8), lambda tensor: tensor[:0]])
def test_integers_and_nothing_are_no_halves_of_an_adapter(half, change):
    path = "transformer.transformer_blocks.0.attn.to_q"
    state = {f"{path}.lora_A.weight": torch.ones(2, 8), f"{path}.lora_B.weight": torch.ones(8, 2)}
    name = f"{path}.{half}.weight"
    with pytest.raises(UserError, match=r"has A|is stored in torch.*int8.*not plain floats"):
        reading.read_state(state | {name: change(state[name])}, {}, FLUX1, "here")


NARROW = {
    "transformer_blocks.0.attn.to_q": (8, 8),
    "transformer_blocks.0.attn.to_v": (8, 8),
    "single_transformer_blocks.1.proj_mlp": (32, 8),
    "norm_out.linear": (16, 8),
}
SPOILT = {
    "lost": lambda tensor: None,
    "turned": lambda tensor: tensor.T if tensor.ndim == 2 else tensor[None],
    "folded": lambda tensor: tensor.reshape(1, *tensor.shape, 1),
    "empty": lambda tensor: tensor[:0] if tensor.ndim else tensor.new_zeros(0),
    "one row less": lambda tensor: tensor[:-1] if tensor.ndim else tensor,
    "a number": lambda tensor: tensor.new_tensor(1.0),
    "integers": lambda tensor: tensor.long(),
}
NAMES = (
    "{}",
    "x.{}",
    "unet.{}",
    "{}.weight",
    "text_encoder.{}",
    "lora_te2_{}",
    "transformer.{}",
    "lora_unet_{}",
)
ENTRIES = (None, "", "[]", "null", '{"transformer.r": 2}', '{"transformer.alpha_pattern": null}')


@given(data=strategies.data())
def test_a_spoilt_file_is_read_or_refused(data):
    """And never anything else, whatever is wrong with it."""
    draw = torch.Generator().manual_seed(0)
    lora = {
        path: LowRank(torch.randn(2, width, generator=draw), torch.randn(out, 2, generator=draw), 1.0)
        for path, (out, width) in NARROW.items()
    }
    form = data.draw(strategies.sampled_from(list(writing.Format)))
    state, metadata = writing.write_state(lora, form, FLUX1)
    for key in data.draw(strategies.lists(strategies.sampled_from(sorted(state)), max_size=3, unique=True)):
        spoil = data.draw(strategies.sampled_from(sorted(SPOILT)))
        tensor = SPOILT[spoil](state.pop(key))
        if tensor is not None:
            state[data.draw(strategies.sampled_from(NAMES)).format(key)] = tensor
    entry = data.draw(strategies.sampled_from(ENTRIES))
    if entry is not None:
        metadata[reading.DIFFUSERS_METADATA] = entry
    model = SimpleNamespace(
        named_modules=lambda: [(path, torch.nn.Linear(width, out)) for path, (out, width) in NARROW.items()]
    )
    try:
        found = reading.read_state(state, metadata, FLUX1, "here")
        # the shapes of modules that a file names by diffusers' paths are known to the model alone
        peft_layers.check_fits(model, found.backbone, "here")
    except UserError:
        return
    for path, part in found.backbone.items():
        assert part.features == NARROW[path]
        assert part.rank > 0
