"""FLUX.2 [klein]: Qwen3's hidden states in, four position axes, guidance none (distilled) or two passes
(base)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from uhr.models.families.base import Backbone, attention_arguments
from uhr.models.families.conditions import Condition, Prompt
from uhr.models.families.text import CHAT_LAYERS, ChatEncoder, Embedded, embed_chat
from uhr.models.ops.schedules import refuse_runaway
from uhr.models.specs.spec import GuidanceKind


@dataclass(frozen=True)
class EmpiricalShift:
    """FLUX.2's dynamic shift: mu over the number of image tokens and the number of steps.

    Up to 4,300 tokens two lines fitted at 10 and 200 steps, with a straight line in the steps between and
    beyond; above it the second line alone, which is FLUX.1's and runs away as that does.
    """

    steps: int
    max_tokens: int = 4300

    def mu(self, tokens: int) -> float:
        """log of the shift factor, for up to `max_tokens` tokens; diffusers' `compute_empirical_mu`."""
        at_10, at_200 = 8.73809524e-05 * tokens + 1.89833333, 0.00016927 * tokens + 0.45666666
        slope = (at_200 - at_10) / 190
        return at_200 + slope * (self.steps - 200)

    def factor(self, tokens: int) -> float:
        """exp(mu), refused above `max_tokens`."""
        refuse_runaway(tokens, self.max_tokens, 0.00016927 * tokens + 0.45666666)
        return math.exp(self.mu(tokens))


class Flux2(Backbone):
    """`Flux2Transformer2DModel`."""

    name = "flux2"
    pooled = False

    def embed(
        self, pipeline: Any, prompt: Prompt, length: int, layers: Sequence[int] = CHAT_LAYERS
    ) -> Embedded:
        """Three of Qwen3's hidden states side by side, [B, length, 3 D]; padded places included."""
        if prompt.embeds is not None:
            return Embedded(prompt.embeds, None)
        encoder = ChatEncoder(pipeline.tokenizer, pipeline.text_encoder, {"qwen3": length})
        return embed_chat(encoder, prompt.texts or [], layers)

    def image_ids(self, rows: int, columns: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """(0, row, column, 0)."""
        ids = torch.zeros(rows, columns, 4, dtype=torch.float32, device=device)
        ids[..., 1] = torch.arange(rows, device=device)[:, None]
        ids[..., 2] = torch.arange(columns, device=device)[None, :]
        return ids.reshape(rows * columns, 4)

    def text_ids(self, length: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """(0, 0, 0, place in the text)."""
        ids = torch.zeros(length, 4, dtype=torch.float32, device=device)
        ids[:, 3] = torch.arange(length, device=device)
        return ids

    def guidance_kind(self, transformer: Any, pipeline_config: Mapping[str, Any]) -> GuidanceKind:
        """klein embeds no guidance: the distilled one takes none, the base one two passes."""
        if transformer.config.guidance_embeds:
            return "embedded"
        return "none" if pipeline_config.get("is_distilled") else "cfg"

    def text_length(self, transformer: Any) -> int:
        return 512

    def noise_shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        return 4 * channels, height // 2, width // 2

    def shifter(self, scheduler_config: Mapping[str, Any], steps: int) -> EmpiricalShift:
        return EmpiricalShift(steps)

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
            encoder_hidden_states=condition.text,
            txt_ids=condition.text_ids,
            img_ids=condition.image_ids,
            joint_attention_kwargs=attention_arguments(condition, attention),
            return_dict=False,
        )[0].float()
