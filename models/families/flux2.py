"""FLUX.2 [klein]: Qwen3's hidden states, four position axes, no guidance (distilled) or two passes (base)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uhr.models.families.base import Backbone
from uhr.models.families.conditions import Prompt
from uhr.models.families.text import (
    Embedded,
    TextEncoders,
    TokenCount,
    device_of,
    token_lengths,
    tokenize,
)
from uhr.models.specs.spec import GuidanceKind

if TYPE_CHECKING:
    import torch

TEXT_LAYERS = (9, 18, 27)
"""Layers of Qwen3 whose hidden states FLUX.2 [klein] reads, concatenated."""


@dataclass(frozen=True)
class EmpiricalShift:
    """FLUX.2's dynamic shift: mu as a function of the number of image tokens and the number of steps.

    Two lines give mu by the number of tokens, one fitted at 10 steps and one at 200. Up to 4,300 tokens, mu
    is their linear interpolation (or extrapolation) in the number of steps. Above that it is the second line
    alone, which is FLUX.1's and grows without bound.
    """

    steps: int
    max_tokens: int = 4300

    def mu(self, tokens: int) -> float:
        """Return the log of the shift factor for at most `max_tokens` tokens: diffusers'
        `compute_empirical_mu`."""
        at_10, at_200 = 8.73809524e-05 * tokens + 1.89833333, 0.00016927 * tokens + 0.45666666
        slope = (at_200 - at_10) / 190
        return at_200 + slope * (self.steps - 200)

    def factor(self, tokens: int) -> float:
        """Return exp(mu). Raises UserError above `max_tokens`."""
        from uhr.models.ops.schedules import check_calibrated

        check_calibrated(tokens, self.max_tokens, 0.00016927 * tokens + 0.45666666)
        return math.exp(self.mu(tokens))


class Flux2(Backbone):
    """The family of `Flux2Transformer2DModel`."""

    name = "flux2"
    text_tensors = ("qwen3",)

    def encoders(self, pipeline: Any, length: int) -> TextEncoders:
        return TextEncoders(pipeline.tokenizer, pipeline.text_encoder, {"qwen3": length})

    def embed(self, encoders: TextEncoders, prompt: Prompt, layers: Sequence[int] = TEXT_LAYERS) -> Embedded:
        """Return three of Qwen3's hidden states, concatenated: "qwen3" [B, L, 3 D].

        The result equals `Flux2KleinPipeline.encode_prompt` with `max_sequence_length` L: each prompt is a
        user's turn in the tokenizer's chat template, without thinking; padding is masked in the encoder, but
        its hidden states are part of the result.
        """
        import torch

        if prompt.embeds is not None:
            return Embedded({"qwen3": prompt.embeds})
        encoder, texts = encoders.text_encoder, prompt.texts or []
        ids, mask = tokenize(encoders.tokenizer, _turns(encoders.tokenizer, texts), encoders.lengths["qwen3"])
        device = device_of(encoder)
        with torch.no_grad():
            states = encoder(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                output_hidden_states=True,
                use_cache=False,
            ).hidden_states
        found = torch.cat([states[layer] for layer in layers], dim=-1).to(encoder.dtype)
        return Embedded({"qwen3": found}, self.count(encoders, texts))

    def count(self, encoders: TextEncoders, texts: Sequence[str]) -> tuple[TokenCount, ...]:
        """Count the tokens of each text with its turn of the chat template."""
        tokens = token_lengths(encoders.tokenizer, _turns(encoders.tokenizer, texts))
        return (TokenCount("prompt", "qwen3", tokens, encoders.lengths["qwen3"]),)

    def text_shapes(self, config: Mapping[str, Any], length: int) -> dict[str, tuple[int, ...]]:
        return {"qwen3": (length, config["joint_attention_dim"])}

    def image_ids(self, rows: int, columns: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return ids (0, row, column, 0)."""
        import torch

        ids = torch.zeros(rows, columns, 4, dtype=torch.float32, device=device)
        ids[..., 1] = torch.arange(rows, device=device)[:, None]
        ids[..., 2] = torch.arange(columns, device=device)[None, :]
        return ids.reshape(rows * columns, 4)

    def text_ids(self, length: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return ids (0, 0, 0, position in the text)."""
        import torch

        ids = torch.zeros(length, 4, dtype=torch.float32, device=device)
        ids[:, 3] = torch.arange(length, device=device)
        return ids

    def guidance_kind(self, transformer: Any, pipeline_config: Mapping[str, Any]) -> GuidanceKind:
        """Return "none" for the distilled klein and "cfg" for the base one; neither embeds guidance."""
        if transformer.config.guidance_embeds:
            return "embedded"
        return "none" if pipeline_config.get("is_distilled") else "cfg"

    def text_length(self, transformer: Any) -> int:
        return 512

    def noise_shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        return 4 * channels, height // 2, width // 2

    def shifter(self, scheduler_config: Mapping[str, Any], steps: int) -> EmpiricalShift:
        return EmpiricalShift(steps)


def _turns(tokenizer: Any, texts: Sequence[str]) -> list[str]:
    """Return each text as a user's turn, with the start of an answer without thinking."""
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        for text in texts
    ]
