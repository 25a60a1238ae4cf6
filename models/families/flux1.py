"""FLUX.1: T5 tokens and CLIP's pooled vector in, three position axes, guidance embedded (dev) or none
(schnell)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from uhr.models.families.base import Backbone, attention_arguments
from uhr.models.families.conditions import Condition, Prompt
from uhr.models.families.text import Embedded, TextEncoders, embed_prompts
from uhr.models.ops import latents as latent
from uhr.models.ops.schedules import Calibration
from uhr.models.specs.spec import GuidanceKind


class Flux1(Backbone):
    """`FluxTransformer2DModel`."""

    name = "flux1"
    pooled = True

    def embed(self, pipeline: Any, prompt: Prompt, length: int) -> Embedded:
        """T5's [B, length, D] and CLIP's [B, P]."""
        if prompt.embeds is not None:
            return Embedded(prompt.embeds, prompt.pooled)
        lengths = {"clip": pipeline.tokenizer_max_length, "t5": length}
        encoders = TextEncoders(
            pipeline.tokenizer,
            pipeline.text_encoder,
            pipeline.tokenizer_2,
            pipeline.text_encoder_2,
            lengths,
        )
        texts = _converted(pipeline, prompt.texts or [], pipeline.tokenizer)
        if prompt.texts_2 is None:
            return embed_prompts(encoders, texts)
        return embed_prompts(encoders, texts, _converted(pipeline, prompt.texts_2, pipeline.tokenizer_2))

    def image_ids(self, rows: int, columns: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """(0, row, column)."""
        return latent.image_ids(rows, columns, device)

    def text_ids(self, length: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """All zero."""
        return latent.text_ids(length, device)

    def guidance_kind(self, transformer: Any, pipeline_config: Mapping[str, Any]) -> GuidanceKind:
        return "embedded" if transformer.config.guidance_embeds else "none"

    def text_length(self, transformer: Any) -> int:
        """512 T5 tokens, or schnell's 256."""
        return 512 if transformer.config.guidance_embeds else 256

    def noise_shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        return channels, height, width

    def shifter(self, scheduler_config: Mapping[str, Any], steps: int) -> Calibration:
        return Calibration.of(scheduler_config)

    def call(
        self,
        transformer: Any,
        tokens: torch.Tensor,
        sigma: torch.Tensor,
        condition: Condition,
        attention: Mapping[str, Any] | None = None,
    ) -> torch.Tensor:
        return transformer(
            hidden_states=tokens.to(transformer.dtype),
            timestep=sigma.float(),
            guidance=condition.guidance,
            pooled_projections=condition.pooled,
            encoder_hidden_states=condition.text,
            txt_ids=condition.text_ids,
            img_ids=condition.image_ids,
            joint_attention_kwargs=attention_arguments(condition, attention),
            return_dict=False,
        )[0].float()


def _converted(pipeline: Any, texts: list[str], tokenizer: Any) -> list[str]:
    """The texts with every token of textual inversion that stands for several vectors written out. Only for
    tokenizers that have such a token: of a long text diffusers' function would print a warning."""
    known = tokenizer.get_added_vocab()
    several = any(f"{token}_1" in known for token in known)
    return pipeline.maybe_convert_prompt(texts, tokenizer) if several else texts
