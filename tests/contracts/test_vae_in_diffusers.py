"""The parts of diffusers' VAEs and of torch that uhr.models.vae uses."""

import inspect

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D

CLASSES = (AutoencoderKL, AutoencoderKLFlux2)


@pytest.mark.parametrize("cls", CLASSES)
def test_encode_and_decode_go_through_the_methods_that_exact_tiling_takes_over(cls):
    assert "self._encode(" in inspect.getsource(cls.encode)
    assert "self._decode(" in inspect.getsource(cls.decode)
    assert list(inspect.signature(cls._decode).parameters) == ["self", "z", "return_dict"]


@pytest.mark.parametrize("cls", CLASSES)
def test_a_vae_has_the_state_that_f16_edits(cls):
    levels = len(inspect.signature(cls).parameters["down_block_types"].default)
    vae = cls(block_out_channels=(8,) * levels, norm_num_groups=4)
    assert vae.encoder.conv_in.stride == (1, 1)
    assert isinstance(vae.decoder.conv_act, torch.nn.SiLU)
    assert isinstance(vae.tile_latent_min_size, int)
    assert vae.config is vae._internal_dict


def test_resnets_and_resamplers_have_the_fields_that_are_read_past_their_forward():
    resnet = ResnetBlock2D(in_channels=8, out_channels=16, groups=4, temb_channels=None)
    for name in (
        "norm1", "conv1", "norm2", "conv2", "nonlinearity", "conv_shortcut", "output_scale_factor", "dropout",
        "upsample", "downsample", "time_emb_proj", "time_embedding_norm",
    ):  # fmt: skip
        assert hasattr(resnet, name), name
    down, up = Downsample2D(8, use_conv=True, padding=0), Upsample2D(8, use_conv=True)
    assert (down.padding, down.norm, down.conv.stride) == (0, None, (2, 2))
    assert (up.interpolate, up.use_conv_transpose, up.norm) == (True, False, None)


def test_group_norm_gives_mean_and_rate_without_weights_or_epsilon():
    x = torch.randn(1, 4, 5, 7)
    _, mean, rate = torch.native_group_norm(x, None, None, 1, 4, 35, 2, 0.0)
    groups = x.reshape(2, -1)
    torch.testing.assert_close(mean.flatten(), groups.mean(1))
    torch.testing.assert_close(rate.flatten() ** -2, groups.var(1, correction=0))
