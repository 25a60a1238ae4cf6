"""F8 to F16: the same weights on half the grid."""

import copy
import json
import shutil
import struct

import pytest
import torch
from torch import nn

from uhr.base.errors import UserError
from uhr.models.surgery.base import applied, record
from uhr.models.vae.f16 import F16, restore, vae_factor


@pytest.fixture
def f8(tiny_flux):
    from uhr.models.zoo import load_vae

    return load_vae(tiny_flux)


@pytest.fixture
def f16(f8):
    F16().apply(f8)
    return f8


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_the_factor_is_16_everywhere_and_an_image_has_a_latent_of_a_sixteenth(f8):
    assert vae_factor(f8) == 8
    F16().apply(f8)
    assert vae_factor(f8) == 16
    with torch.no_grad():
        latent = f8.encode(draw(1, 3, 96, 160)).latent_dist.mean
        image = f8.decode(latent).sample
    assert latent.shape == (1, 16, 6, 10)
    assert image.shape == (1, 3, 96, 160)


def test_the_decoder_is_the_f8_decoder_with_doubled_rows_and_columns_before_its_last_convolution(f8):
    # in float64, where a sum in another order differs by 1e-15: CPUs round by memory layout
    f8, z = f8.double(), draw(2, 16, 5, 7).double()
    by_hand = copy.deepcopy(f8.decoder)
    last, by_hand.conv_out = by_hand.conv_out, nn.Identity()
    with torch.no_grad():
        doubled = by_hand(z).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        expected = last(doubled)
        F16().apply(f8)
        torch.testing.assert_close(f8.decode(z).sample, expected, rtol=0, atol=1e-12)


def test_the_encoder_sees_every_second_row_and_column_of_its_first_convolution(f8):
    f8, x = f8.double(), draw(1, 3, 64, 48).double()
    by_hand = copy.deepcopy(f8.encoder)
    first, by_hand.conv_in = by_hand.conv_in, nn.Identity()
    with torch.no_grad():
        expected = by_hand(first(x)[:, :, ::2, ::2])
        F16().apply(f8)
        torch.testing.assert_close(f8.encode(x).latent_dist.parameters, expected, rtol=0, atol=1e-12)


def test_weights_keep_their_names_shapes_and_values(f8):
    before = {name: tensor.clone() for name, tensor in f8.state_dict().items()}
    F16().apply(f8)
    after = f8.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_revert_is_bitwise(f8):
    x, z = draw(1, 3, 64, 48), draw(1, 16, 4, 3)
    config, modules = dict(f8.config), [type(module) for module in f8.modules()]
    tiles, names = f8.tile_latent_min_size, sorted(vars(f8))
    with torch.no_grad():
        before = f8.encode(x).latent_dist.parameters, f8.decode(z).sample
        F16().apply(f8)
        F16().revert(f8)
        after = f8.encode(x).latent_dist.parameters, f8.decode(z).sample
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert dict(f8.config) == config
    assert [type(module) for module in f8.modules()] == modules
    assert (f8.tile_latent_min_size, sorted(vars(f8))) == (tiles, names)


def test_a_saved_f16_vae_says_so_and_a_stock_load_without_it_is_refused(f16, tmp_path):
    from diffusers import AutoencoderKL

    f16.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["stride"] == 2
    loaded = AutoencoderKL.from_pretrained(tmp_path, local_files_only=True).eval()
    with pytest.raises(UserError, match="stride=2, its encoder has stride 1"):
        vae_factor(loaded)
    restore(loaded)
    restore(loaded)
    assert applied(loaded) == [F16()]
    z = draw(1, 16, 4, 3)
    with torch.no_grad():
        assert torch.equal(loaded.decode(z).sample, f16.decode(z).sample)


def test_an_f8_vae_is_left_alone_by_restore_and_another_stride_is_refused(f8):
    assert applied(restore(f8)) == []
    f8.register_to_config(stride=4)
    with pytest.raises(UserError, match="stride=4"):
        restore(f8)


def test_what_is_no_f8_vae_is_refused(f8):
    with pytest.raises(UserError, match="Linear is not a VAE"):
        F16().apply(nn.Linear(2, 2))
    f8.encoder.conv_in.stride = (2, 2)
    with pytest.raises(UserError, match="already has stride 2"):
        F16().apply(f8)
    assert record(f8) == []


def test_diffusers_own_tiling_still_fits_its_tiles_together(f16):
    z = draw(1, 16, 12, 20)
    f16.enable_tiling()
    with torch.no_grad():
        assert f16.decode(z).sample.shape == (1, 3, 192, 320)
        assert f16.encode(draw(1, 3, 192, 320)).latent_dist.mean.shape == z.shape


def published_shapes() -> dict[str, list[int]]:
    """Keys and shapes of FLUX.1's VAE, and of UltraFlux's F16 one: 244 tensors, written out from their
    rule."""
    shapes: dict[str, list[int]] = {}

    def conv(name: str, inputs: int, out: int, kernel: int = 3) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = [out, inputs, kernel, kernel], [out]

    def plain(name: str, *weight: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = list(weight), [weight[0]]

    def resnet(name: str, inputs: int, out: int) -> None:
        plain(f"{name}.norm1", inputs)
        conv(f"{name}.conv1", inputs, out)
        plain(f"{name}.norm2", out)
        conv(f"{name}.conv2", out, out)
        if inputs != out:
            conv(f"{name}.conv_shortcut", inputs, out, kernel=1)

    def middle(part: str) -> None:
        resnet(f"{part}.mid_block.resnets.0", 512, 512)
        resnet(f"{part}.mid_block.resnets.1", 512, 512)
        plain(f"{part}.mid_block.attentions.0.group_norm", 512)
        for linear in ("to_q", "to_k", "to_v", "to_out.0"):
            plain(f"{part}.mid_block.attentions.0.{linear}", 512, 512)
        plain(f"{part}.conv_norm_out", 512 if part == "encoder" else 128)

    conv("encoder.conv_in", 3, 128)
    for block, (inputs, out) in enumerate([(128, 128), (128, 256), (256, 512), (512, 512)]):
        for i in range(2):
            resnet(f"encoder.down_blocks.{block}.resnets.{i}", out if i else inputs, out)
        if block < 3:
            conv(f"encoder.down_blocks.{block}.downsamplers.0.conv", out, out)
    middle("encoder")
    conv("encoder.conv_out", 512, 32)
    conv("decoder.conv_in", 16, 512)
    middle("decoder")
    for block, (inputs, out) in enumerate([(512, 512), (512, 512), (512, 256), (256, 128)]):
        for i in range(3):
            resnet(f"decoder.up_blocks.{block}.resnets.{i}", out if i else inputs, out)
        if block < 3:
            conv(f"decoder.up_blocks.{block}.upsamplers.0.conv", out, out)
    conv("decoder.conv_out", 128, 3)
    return shapes


PUBLISHED_CONFIG = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.30.0.dev0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 16,
    "latents_mean": None,
    "latents_std": None,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "stride": 2,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}


def write_zeros(path, shapes: dict[str, list[int]]) -> None:
    """A safetensors file of bfloat16 zeros that takes no space on the disk: the tail is a hole."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def test_a_published_f16_vae_loads_by_its_own_keys_shapes_and_configuration(tiny_flux, tmp_path):
    from uhr.models.zoo import load_vae

    folder = shutil.copytree(tiny_flux, tmp_path / "model", ignore=shutil.ignore_patterns("vae"))
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text(json.dumps(PUBLISHED_CONFIG))
    shapes = published_shapes()
    assert len(shapes) == 244
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 83_819_683
    write_zeros(folder / "vae" / "diffusion_pytorch_model.safetensors", shapes)

    vae = load_vae(folder, dtype="bfloat16")
    assert {name: list(tensor.shape) for name, tensor in vae.state_dict().items()} == shapes
    assert not any(tensor.count_nonzero() for tensor in vae.state_dict().values())
    assert vae_factor(vae) == 16
    assert applied(vae) == [F16()]
