"""The families that a sampler can be bound to: each is diffusers' stock pipeline with what samplers need."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import Any

import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline
from diffusers.utils import scale_lora_layers, unscale_lora_layers

from uhr.models.backbones.flux1 import Flux1
from uhr.models.backbones.flux2 import Flux2
from uhr.models.conditions import Prompt
from uhr.models.pipelines import SamplerPipeline
from uhr.models.text import (
    CHAT_LAYERS,
    ChatEncoder,
    Embedded,
    TextEncoders,
    embed_chat,
    embed_prompts,
)


class OnFlux1(SamplerPipeline, FluxPipeline):
    """FLUX.1's components and text encoding."""

    backbone = Flux1()
    pooled = True

    def embed(self, prompt: Prompt, length: int) -> Embedded:
        """T5's [B, length, D] and CLIP's [B, P]."""
        if prompt.embeds is not None:
            return Embedded(prompt.embeds, prompt.pooled)
        lengths = {"clip": self.tokenizer_max_length, "t5": length}
        encoders = TextEncoders(
            self.tokenizer, self.text_encoder, self.tokenizer_2, self.text_encoder_2, lengths
        )
        texts = self._converted(prompt.texts or [], self.tokenizer)
        texts_2 = None if prompt.texts_2 is None else self._converted(prompt.texts_2, self.tokenizer_2)
        return embed_prompts(encoders, texts, texts_2)

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        prompt_2: str | list[str] | None = None,
        device: torch.device | None = None,
        num_images_per_prompt: int = 1,
        prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        max_sequence_length: int = 512,
        lora_scale: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """As the stock pipeline's, by `embed`: what is cut off is logged in one line."""
        with self._text_lora(lora_scale):
            asked = Prompt(prompt, prompt_2 or None, prompt_embeds, pooled_prompt_embeds)
            found = self.embed(asked, max_sequence_length)
        self.log_cuts(found.counts)
        device = device or self._execution_device
        text, pooled = found.text.to(device).repeat_interleave(num_images_per_prompt, dim=0), found.pooled
        if pooled is not None:
            pooled = pooled.to(device).repeat_interleave(num_images_per_prompt, dim=0)
        dtype = self.transformer.dtype if self.text_encoder is None else self.text_encoder.dtype
        return text, pooled, torch.zeros(text.shape[1], 3, device=device, dtype=dtype)

    @contextlib.contextmanager
    def _text_lora(self, scale: float | None) -> Generator[None]:
        """The text encoders' LoRA layers at `scale` times their strength, as the stock pipeline has them
        while it encodes; None leaves them as they are."""
        encoders = [each for each in (self.text_encoder, self.text_encoder_2) if each is not None]
        if scale is not None:
            self._lora_scale = scale
            for encoder in encoders:
                scale_lora_layers(encoder, scale)
        try:
            yield
        finally:
            for encoder in encoders:
                unscale_lora_layers(encoder, scale)

    def _converted(self, texts: list[str], tokenizer: Any) -> list[str]:
        """The texts with every token of textual inversion that stands for several vectors written out. Asked
        only where a tokenizer knows any: of a long text it would print a warning."""
        known = tokenizer.get_added_vocab()
        several = any(f"{token}_1" in known for token in known)
        return self.maybe_convert_prompt(texts, tokenizer) if several else texts


class OnFlux2(SamplerPipeline, Flux2KleinPipeline):
    """FLUX.2 [klein]'s components and text encoding."""

    backbone = Flux2()
    pooled = False

    def embed(self, prompt: Prompt, length: int, layers: Sequence[int] = CHAT_LAYERS) -> Embedded:
        """Three of Qwen3's hidden states side by side, [B, length, 3 D]; padded places included."""
        if prompt.embeds is not None:
            return Embedded(prompt.embeds, None)
        encoder = ChatEncoder(self.tokenizer, self.text_encoder, {"qwen3": length})
        return embed_chat(encoder, prompt.texts or [], layers)

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        device: torch.device | None = None,
        num_images_per_prompt: int = 1,
        prompt_embeds: torch.Tensor | None = None,
        max_sequence_length: int = 512,
        text_encoder_out_layers: Sequence[int] = CHAT_LAYERS,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As the stock pipeline's, by `embed`: what is cut off is logged in one line."""
        text = "" if prompt is None and prompt_embeds is None else prompt
        asked = Prompt(text, embeds=prompt_embeds)
        found = self.embed(asked, max_sequence_length, text_encoder_out_layers)
        self.log_cuts(found.counts)
        device = device or self._execution_device
        embeds = found.text.to(device).repeat_interleave(num_images_per_prompt, dim=0)
        return embeds, self._prepare_text_ids(embeds).to(device)
