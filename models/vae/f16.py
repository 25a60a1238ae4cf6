"""F8 to F16: the same weights, 16 pixels per latent (recipe of UltraFlux and Diffusion-4K)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from uhr.base.errors import UserError
from uhr.models.surgery.base import Surgery, applied

if TYPE_CHECKING:
    from torch import nn


class F16(Surgery):
    """Halve the latent grid of diffusers' `AutoencoderKL`; no weight changes its name, shape or value.

    Encoder: `conv_in` has stride 2. Decoder: nearest-neighbour upsampling by 2 right before `conv_out`, after
    the last norm and activation. `config.stride` becomes 2, the key of the published checkpoints, so that a
    saved VAE can be recognised (`restore`). An image of H x W has a latent of H/16 x W/16. Source:
    UltraFlux's official `ultraflux/autoencoder_kl.py`, which follows Diffusion-4K's.

    The official code decodes in 2 x 2 partitions by default; its result is shifted by one pixel down and
    right from that of the plain form implemented here.
    """

    name: ClassVar[str] = "vae-f16"
    edits: ClassVar[frozenset[str]] = frozenset(
        {"vae.encoder.conv_in", "vae.decoder.conv_act", "vae.config.stride"}
    )

    def perform(self, model: Any) -> dict[str, Any]:
        from torch import nn

        conv, before = _first_conv(model), model.decoder.conv_act
        kept = {
            "stride": conv.stride,
            "conv_act": before,
            "config": model._internal_dict,
            "tile_latent_min_size": model.tile_latent_min_size,
        }
        conv.stride = (2, 2)
        # not around conv_out: the published keys are decoder.conv_out.weight and .bias
        model.decoder.conv_act = nn.Sequential(before, nn.Upsample(scale_factor=2.0, mode="nearest"))
        model.register_to_config(stride=2)
        model.tile_latent_min_size //= 2
        return kept

    def undo(self, model: Any, kept: dict[str, Any]) -> None:
        model.encoder.conv_in.stride = kept["stride"]
        model.decoder.conv_act = kept["conv_act"]
        model._internal_dict = kept["config"]
        model.tile_latent_min_size = kept["tile_latent_min_size"]


def _first_conv(model: Any) -> nn.Conv2d:
    from torch import nn

    conv = getattr(getattr(model, "encoder", None), "conv_in", None)
    if not isinstance(conv, nn.Conv2d) or not hasattr(model, "register_to_config"):
        what = f"{type(model).__name__} is not a VAE of diffusers"
        raise UserError(what, "apply vae-f16 to an AutoencoderKL")
    if conv.stride != (1, 1):
        raise UserError(f"the encoder's conv_in already has stride {conv.stride[0]}", "load an F8 VAE")
    return conv


def restore(model: Any) -> Any:
    """Apply `F16` to a VAE whose configuration has `stride: 2`, as after `from_pretrained`; return the VAE.

    diffusers' own class keeps the key but ignores it: an F16 checkpoint would run as F8. Raises UserError if
    the stride is neither 1 nor 2.
    """
    stride = model.config.get("stride", 1)
    if stride not in (1, 2):
        raise UserError(f"the VAE's configuration has stride={stride}", "only 1 (F8) and 2 (F16) are known")
    if stride == 2 and F16() not in applied(model):
        F16().apply(model)
    return model


def vae_factor(vae: Any) -> int:
    """Return the pixels per latent of a loaded VAE, per side: 8, or 16 after `F16`. Read from the modules.

    Raises UserError if the modules differ from the configuration's stride (see `restore`).
    """
    halvings = sum(1 for block in vae.encoder.down_blocks if block.downsamplers is not None)
    stride = vae.encoder.conv_in.stride[0]
    configured = vae.config.get("stride", 1)
    if configured != stride:
        what = f"the VAE's configuration has stride={configured}, its encoder has stride {stride}"
        raise UserError(what, "load it with uhr.models.zoo.load_vae, or call uhr.models.vae.f16.restore")
    return stride * 2**halvings
