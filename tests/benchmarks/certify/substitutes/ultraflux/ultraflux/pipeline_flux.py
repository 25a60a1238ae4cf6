"""Substitute for UltraFlux's pipeline: diffusers' own at 16 px per latent."""

import functools

import diffusers
from diffusers.image_processor import VaeImageProcessor


class FluxPipeline(diffusers.FluxPipeline):
    def __init__(
        self,
        scheduler,
        vae,
        text_encoder,
        tokenizer,
        text_encoder_2,
        tokenizer_2,
        transformer,
        image_encoder=None,
        feature_extractor=None,
    ):
        super().__init__(scheduler, vae, text_encoder, tokenizer, text_encoder_2, tokenizer_2, transformer)
        self.vae_scale_factor = 16
        self.image_processor = VaeImageProcessor(vae_scale_factor=32)

    def __call__(self, *arguments, partitioned=True, **named):
        plain = self.vae.decode
        self.vae.decode = functools.partial(plain, partitioned=partitioned)
        try:
            return super().__call__(*arguments, **named)
        finally:
            self.vae.decode = plain
