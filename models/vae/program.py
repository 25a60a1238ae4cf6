"""Translate a loaded VAE's encoder or decoder into units, each a sequence of row streams (`stream.py`).

The modules and their weights stay in the VAE. A module that cannot be streamed exactly raises UserError with
its name. Activations may be stored between units, never inside one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from torch import nn

from uhr.base.errors import UserError
from uhr.models.vae.attention import VaeAttention
from uhr.models.vae.stream import Conv, Double, Join, Norm, Shape, Split

Layer = Conv | Norm | Double | Split | Join | VaeAttention
Unit = tuple[Layer, ...]


def encoder_units(vae: Any) -> list[Unit]:
    """Return the encoder's units: pixels [1, 3, H, W] to mean and log variance [1, 2C, H/f, W/f]."""
    encoder, tags = vae.encoder, itertools.count()
    units: list[Unit] = [(_conv(encoder.conv_in),)]
    for block in encoder.down_blocks:
        _expect(block, "DownEncoderBlock2D")
        units += [_resnet(resnet, next(tags)) for resnet in block.resnets]
        units += [_downsampler(module) for module in block.downsamplers or ()]
    units += _middle(encoder.mid_block, tags)
    units.append(_head(encoder))
    return units + ([(_conv(vae.quant_conv),)] if vae.quant_conv is not None else [])


def decoder_units(vae: Any) -> list[Unit]:
    """Return the decoder's units: raw latents [1, C, H, W] to pixels [1, 3, fH, fW]."""
    decoder, tags = vae.decoder, itertools.count()
    units: list[Unit] = [(_conv(vae.post_quant_conv),)] if vae.post_quant_conv is not None else []
    units.append((_conv(decoder.conv_in),))
    units += _middle(decoder.mid_block, tags)
    for block in decoder.up_blocks:
        _expect(block, "UpDecoderBlock2D")
        units += [_resnet(resnet, next(tags)) for resnet in block.resnets]
        units += [_upsampler(module) for module in block.upsamplers or ()]
    return [*units, _head(decoder)]


def shapes(units: list[Unit], input_shape: Shape) -> list[Shape]:
    """Return the input's shape, followed by the shape of each unit's output."""
    result = [input_shape]
    for unit in units:
        for layer in unit:
            input_shape = layer.shape(input_shape)
        result.append(input_shape)
    return result


def _middle(block: Any, tags: Iterator[int]) -> list[Unit]:
    _expect(block, "UNetMidBlock2D")
    first, *others = block.resnets
    units = [_resnet(first, next(tags))]
    for attention, resnet in zip(block.attentions, others, strict=True):
        if attention is not None:
            units.append((_attention(attention),))
        units.append(_resnet(resnet, next(tags)))
    return units


def _resnet(module: Any, tag: int) -> Unit:
    _expect(module, "ResnetBlock2D")
    # diffusers calls the decoder's plain norm "group"
    plain = module.time_emb_proj is None and module.time_embedding_norm in ("default", "group")
    if not plain or module.upsample is not None or module.downsample is not None or module.dropout.p > 0:
        raise _unsupported("a ResnetBlock2D with time embedding, resampling or dropout")
    act = _checked(module.nonlinearity)
    branch = None if module.conv_shortcut is None else _conv(module.conv_shortcut).module
    return (
        Split(tag),
        Norm(_group_norm(module.norm1), act),
        _conv(module.conv1),
        Norm(_group_norm(module.norm2), act),
        _conv(module.conv2),
        Join(tag, branch, module.output_scale_factor),
    )


def _downsampler(module: Any) -> Unit:
    _expect(module, "Downsample2D")
    if module.norm is not None or not module.use_conv:
        raise _unsupported("a Downsample2D with a norm or without a convolution")
    # diffusers pads bottom and right by one where the convolution itself pads nothing
    return (_conv(module.conv, extra=int(module.padding == 0)),)


def _upsampler(module: Any) -> Unit:
    _expect(module, "Upsample2D")
    if module.norm is not None or module.use_conv_transpose or not (module.use_conv and module.interpolate):
        raise _unsupported("an Upsample2D that is not nearest neighbours and a convolution")
    return (Double(), _conv(module.conv))


def _head(part: Any) -> Unit:
    """Last norm, activation and convolution; `F16` doubles rows and columns after the activation."""
    act, double = part.conv_act, ()
    if isinstance(act, nn.Sequential):
        act, upsample = act
        if not isinstance(upsample, nn.Upsample) or (upsample.scale_factor, upsample.mode) != (
            2.0,
            "nearest",
        ):
            raise _unsupported(f"{upsample} after the last activation")
        double = (Double(),)
    return (Norm(_group_norm(part.conv_norm_out), _checked(act)), *double, _conv(part.conv_out))


def _attention(module: Any) -> VaeAttention:
    _expect(module, "Attention")
    odd = [name for name in ("spatial_norm", "norm_q", "norm_k") if getattr(module, name) is not None]
    if odd or module.group_norm is None or module.to_out[1].p > 0:
        raise _unsupported(f"an Attention with {', '.join(odd) or 'dropout or without group norm'}")
    for linear in (module.to_q, module.to_k, module.to_v, module.to_out[0]):
        _plain(linear, nn.Linear)
    return VaeAttention(module)


def _conv(module: Any, extra: int = 0) -> Conv:
    _plain(module, nn.Conv2d)
    square = all(len(set(getattr(module, name))) == 1 for name in ("kernel_size", "stride", "padding"))
    if not square or module.dilation != (1, 1) or module.groups != 1 or module.padding_mode != "zeros":
        raise _unsupported(str(module))
    pad = int(module.padding[0])
    return Conv(module, (pad, pad + extra, pad, pad + extra))


def _group_norm(module: Any) -> nn.GroupNorm:
    _plain(module, nn.GroupNorm)
    if not module.affine:
        raise _unsupported("a GroupNorm without weights")
    return module


def _checked(activation: Any) -> nn.Module:
    if not isinstance(activation, nn.SiLU | nn.GELU | nn.ReLU | nn.Mish):
        raise _unsupported(f"activation {activation}")
    return activation


def _expect(module: Any, name: str) -> None:
    if type(module).__name__ != name:
        raise _unsupported(f"a {type(module).__name__} where FLUX's VAE has a {name}")


def _plain(module: Any, cls: type[nn.Module]) -> None:
    """Raise for a wrapped module: streaming reads the weights itself and would ignore what the wrapper
    adds."""
    if type(module) is not cls:
        raise UserError(
            f"exact tiling found {type(module).__name__} in place of {cls.__name__}",
            "merge the adapter or undo the quantisation of the VAE first",
        )


def _unsupported(what: str) -> UserError:
    return UserError(f"exact tiling does not support {what}", "use a VAE built as FLUX's is (AutoencoderKL)")
