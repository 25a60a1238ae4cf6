"""LoRA files that others wrote: read whole, or refused with the reason."""

import pytest
import torch
from safetensors.torch import save_file

from uhr.base.errors import UserError
from uhr.models.adapters.plain import load_lora

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
    load_lora(transformer, file, "x")
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
    load_lora(transformer, write(tmp_path / "kohya.safetensors", tensors), "x")
    for i, name in enumerate(("to_q", "to_k", "to_v")):
        layer = transformer.get_submodule(f"transformer_blocks.0.attn.{name}")
        torch.testing.assert_close(layer.get_delta_weight("x"), 0.5 * up[64 * i : 64 * (i + 1)] @ down)


def test_a_kohya_file_of_another_width_is_an_error(transformer, tmp_path):
    fused = "lora_unet_single_blocks_0_linear1"
    tensors = {
        f"{fused}.lora_down.weight": torch.zeros(2, 64),
        f"{fused}.lora_up.weight": torch.zeros(448, 2),
    }
    with pytest.raises(UserError, match="cannot be read"):
        load_lora(transformer, write(tmp_path / "kohya.safetensors", tensors), "x")


def test_weights_of_a_half_precision_file_are_float32_on_the_model(transformer, tmp_path):
    a, b = (t.bfloat16() for t in matrices())
    file = write(
        tmp_path / "l.safetensors",
        {f"transformer.{PATH}.lora_A.weight": a, f"transformer.{PATH}.lora_B.weight": b},
    )
    load_lora(transformer, file, "x")
    assert transformer.get_submodule(PATH).lora_A["x"].weight.dtype == torch.float32


def test_a_key_of_another_backbone_is_an_error_and_not_a_silent_loss(transformer, tmp_path):
    a, b = matrices()
    path = "transformer.transformer_blocks.18.attn.to_q"
    file = write(tmp_path / "l.safetensors", {f"{path}.lora_A.weight": a, f"{path}.lora_B.weight": b})
    with pytest.raises(UserError, match=r"has no 'transformer_blocks\.18\.attn\.to_q'"):
        load_lora(transformer, file, "x")
    assert not hasattr(transformer, "peft_config")


def test_a_width_of_another_backbone_is_an_error(transformer, tmp_path):
    a, b = matrices(width=48)
    file = write(
        tmp_path / "l.safetensors",
        {f"transformer.{PATH}.lora_A.weight": a, f"transformer.{PATH}.lora_B.weight": b},
    )
    with pytest.raises(UserError, match="has width 64 here and 48 in the file"):
        load_lora(transformer, file, "x")


def test_a_part_for_clip_wants_a_pipeline(transformer, tmp_path):
    a, b = matrices(width=32)
    ta, tb = matrices()
    layer = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    tensors = {f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b,
               f"transformer.{PATH}.lora_A.weight": ta, f"transformer.{PATH}.lora_B.weight": tb}  # fmt: skip
    file = write(tmp_path / "l.safetensors", tensors)
    with pytest.raises(UserError, match="also changes CLIP"):
        load_lora(transformer, file, "x")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.safetensors", "is not there"),
        (
            lambda folder: (folder / "x.ckpt").write_bytes(b"pickle") and folder / "x.ckpt",
            "is no safetensors file",
        ),
        (lambda folder: folder, r"must hold one safetensors file \(found: none\)"),
        (lambda folder: (folder / "x.safetensors").write_bytes(b"junk") and folder, "cannot be read"),
        (
            lambda folder: write(folder / "x.safetensors", {"unet.a": torch.zeros(1)}),
            "no flux1 LoRA|cannot be read",
        ),
    ],
)
def test_what_is_no_adapter_is_one_clear_line(transformer, tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        load_lora(transformer, make(tmp_path), "x")


def test_two_files_in_a_folder_are_ambiguous(transformer, tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.safetensors", {"x": torch.zeros(1)})
    with pytest.raises(UserError, match=r"a\.safetensors, b\.safetensors"):
        load_lora(transformer, tmp_path, "x")
