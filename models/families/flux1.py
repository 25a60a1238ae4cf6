"""FLUX.1: T5 tokens and CLIP's pooled vector, three position axes, guidance embedded (dev) or none
(schnell)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from uhr.models.families.base import Backbone
from uhr.models.families.conditions import Condition, Prompt
from uhr.models.families.text import (
    Embedded,
    TextEncoders,
    TokenCount,
    device_of,
    token_lengths,
    tokenize,
)
from uhr.models.ops.choices import StageShift
from uhr.models.specs.spec import GuidanceKind

if TYPE_CHECKING:
    import torch

    from uhr.models.ops.schedules import Calibration


class Flux1(Backbone):
    """The family of `FluxTransformer2DModel`."""

    name = "flux1"
    text_tensors = ("t5", "pooled")
    stage_shift = StageShift.STATIC
    """The methods for sizes above the native one publish their numbers on FLUX.1."""

    def encoders(self, pipeline: Any, length: int) -> TextEncoders:
        return TextEncoders(
            pipeline.tokenizer,
            pipeline.text_encoder,
            {"clip": pipeline.tokenizer_max_length, "t5": length},
            pipeline.tokenizer_2,
            pipeline.text_encoder_2,
        )

    def embed(self, encoders: TextEncoders, prompt: Prompt) -> Embedded:
        """Return T5's "t5" [B, L, D] and CLIP's "pooled" [B, P], its vector at the end token.

        If `prompt.text_2` is given, T5 encodes it, and only CLIP encodes `prompt.text`. The result equals
        `FluxPipeline.encode_prompt` with `max_sequence_length` L. T5 runs without an attention mask, as
        FLUX.1 was trained: padding is part of the sequence, so that the result depends on L.
        """
        import torch

        if prompt.embeds is not None:
            given = {"t5": prompt.embeds, "pooled": prompt.pooled}
            return Embedded({name: tensor for name, tensor in given.items() if tensor is not None})
        clip, t5 = encoders.text_encoder, encoders.text_encoder_2
        texts, texts_2 = _texts(encoders, prompt.texts or [], prompt.texts_2)
        with torch.no_grad():
            ids, _ = tokenize(encoders.tokenizer, texts, encoders.lengths["clip"])
            pooled = clip(ids.to(device_of(clip)), output_hidden_states=False).pooler_output
            ids, _ = tokenize(encoders.tokenizer_2, texts_2, encoders.lengths["t5"])
            sequence = t5(ids.to(device_of(t5)), output_hidden_states=False)[0]
        found = {"t5": sequence.to(t5.dtype), "pooled": pooled.to(clip.dtype)}
        return Embedded(found, _counts(encoders, texts, texts_2, two=prompt.texts_2 is not None))

    def count(self, encoders: TextEncoders, texts: Sequence[str]) -> tuple[TokenCount, ...]:
        return _counts(encoders, *_texts(encoders, list(texts), None), two=False)

    def text_shapes(self, config: Mapping[str, Any], length: int) -> dict[str, tuple[int, ...]]:
        return {"t5": (length, config["joint_attention_dim"]), "pooled": (config["pooled_projection_dim"],)}

    def image_ids(self, rows: int, columns: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return ids (0, row, column)."""
        from uhr.models.ops.latents import image_ids

        return image_ids(rows, columns, device)

    def text_ids(self, length: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return ids of zeros."""
        from uhr.models.ops.latents import text_ids

        return text_ids(length, device)

    def guidance_kind(self, transformer: Any, pipeline_config: Mapping[str, Any]) -> GuidanceKind:
        return "embedded" if transformer.config.guidance_embeds else "none"

    def text_length(self, transformer: Any) -> int:
        """Return 512 T5 tokens, or 256 for schnell."""
        return 512 if transformer.config.guidance_embeds else 256

    def noise_shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        return channels, height, width

    def shifter(self, scheduler_config: Mapping[str, Any], steps: int) -> Calibration:
        from uhr.models.ops.schedules import Calibration

        return Calibration.of(scheduler_config)

    def other_inputs(self, condition: Condition) -> dict[str, Any]:
        return {"pooled_projections": condition.pooled}


def _texts(
    encoders: TextEncoders, texts: list[str], texts_2: list[str] | None
) -> tuple[list[str], list[str]]:
    """Return the texts for CLIP and for T5."""
    second = texts if texts_2 is None else texts_2
    return _expanded(encoders.tokenizer, texts), _expanded(encoders.tokenizer_2, second)


def _expanded(tokenizer: Any, texts: list[str]) -> list[str]:
    """Expand each token of textual inversion that has several vectors.

    diffusers' function, which warns of long texts, is called only for tokenizers with such a token.
    """
    known = tokenizer.get_added_vocab()
    if not any(f"{token}_1" in known for token in known):
        return texts
    from diffusers.loaders.textual_inversion import TextualInversionLoaderMixin

    return TextualInversionLoaderMixin().maybe_convert_prompt(texts, tokenizer)


def _counts(
    encoders: TextEncoders, texts: list[str], texts_2: list[str], two: bool
) -> tuple[TokenCount, ...]:
    """Count tokens. With `two` prompts only CLIP reads the first one, so that its limit decides."""
    clip, t5 = token_lengths(encoders.tokenizer, texts), token_lengths(encoders.tokenizer_2, texts_2)
    return (
        TokenCount("second prompt" if two else "prompt", "t5", t5, encoders.lengths["t5"]),
        TokenCount("prompt", "clip", clip, encoders.lengths["clip"], decides=two),
    )
