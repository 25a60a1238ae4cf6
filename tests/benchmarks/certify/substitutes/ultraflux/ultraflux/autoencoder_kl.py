"""In place of UltraFlux's VAE: diffusers' own with a stride in the encoder and an upsampling at the end."""

import torch
from diffusers import AutoencoderKL as Stock


class AutoencoderKL(Stock):
    @classmethod
    def from_pretrained(cls, *arguments, **named):
        found = super().from_pretrained(*arguments, **named)
        found.encoder.conv_in.stride = (2, 2)
        wider = torch.nn.Upsample(scale_factor=2, mode="nearest")
        found.decoder.conv_out.register_forward_pre_hook(lambda module, args: (wider(args[0]),))
        return found

    def decode(self, z, return_dict=True, generator=None, partitioned=True):
        assert not partitioned, "the partitioned form is shifted by a pixel"
        return super().decode(z, return_dict=return_dict)
