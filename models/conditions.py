"""What a backbone is told besides latents and noise level, and the prompts that it is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from uhr.base.errors import UserError


@dataclass(frozen=True)
class Prompt:
    """Texts, or their embeddings, as diffusers' pipelines take them. `text_2` goes to T5 where it is
    given."""

    text: str | Sequence[str] | None = None
    text_2: str | Sequence[str] | None = None
    embeds: torch.Tensor | None = None
    pooled: torch.Tensor | None = None

    @property
    def given(self) -> bool:
        return self.text is not None or self.embeds is not None

    @property
    def texts(self) -> list[str] | None:
        return _as_list(self.text)

    @property
    def texts_2(self) -> list[str] | None:
        return _as_list(self.text_2)

    @property
    def count(self) -> int:
        if self.embeds is not None:
            return self.embeds.shape[0]
        return len(self.texts or ())

    def check(self, kind: str) -> int:
        """How many they are; UserError unless there are either texts, or both embeddings of each."""
        if not self.given:
            raise UserError(f"no {kind} is given", f"give a {kind}, or its two embeddings")
        if self.text is not None and self.embeds is not None:
            raise UserError(f"both a {kind} and its embeddings are given", "give one of them")
        if (self.embeds is None) != (self.pooled is None):
            raise UserError(f"only one of the {kind}'s two embeddings is given", "give both")
        return self.count


def _as_list(text: str | Sequence[str] | None) -> list[str] | None:
    if text is None:
        return None
    return [text] if isinstance(text, str) else list(text)


@dataclass(frozen=True)
class Condition:
    """One branch of guidance, for B pictures.

    t5 [B, L, D] and pooled [B, P] in the backbone's dtype; text_ids [L, 3], image_ids [N, 3] and guidance [B]
    (None where the backbone embeds none) in float32.
    """

    t5: torch.Tensor
    pooled: torch.Tensor
    text_ids: torch.Tensor
    image_ids: torch.Tensor
    guidance: torch.Tensor | None


@dataclass(frozen=True)
class Conditions:
    """The prompt and, for classifier-free guidance in two passes, the negative prompt with its scale."""

    positive: Condition
    negative: Condition | None = None
    scale: float = 1.0


def check_cfg(scale: float, negative: bool) -> None:
    """UserError where a negative prompt or a scale of classifier-free guidance would be ignored in
    silence."""
    if negative and scale == 1:
        raise UserError(
            "a negative prompt has no effect at true_cfg_scale 1", "set true_cfg_scale, to 3.5 say"
        )
    if scale != 1 and not negative:
        raise UserError(f"true_cfg_scale {scale:g} wants a negative prompt", 'give one; "" is one')
