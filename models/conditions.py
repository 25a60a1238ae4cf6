"""What a backbone is told besides latents and noise level, and the prompts that it is made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from uhr.base.errors import UserError
from uhr.models.spec import GuidanceKind


@dataclass(frozen=True)
class Prompt:
    """Texts, or their embeddings, as diffusers' pipelines take them. On FLUX.1 `text_2` goes to T5 where it
    is given, and embeddings come with a pooled vector; other families have neither."""

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

    def check(self, kind: str, pooled: bool) -> int:
        """How many they are; UserError unless there are either texts or embeddings, never half of them.

        `pooled` says whether the backbone takes a second text and a pooled vector.
        """
        if not self.given:
            raise UserError(f"no {kind} is given", f"give a {kind}, or its embeddings")
        if self.text is not None and self.embeds is not None:
            raise UserError(f"both a {kind} and its embeddings are given", "give one of them")
        if not pooled and (self.text_2 is not None or self.pooled is not None):
            what = f"a second {kind} or a pooled embedding is given, and this backbone has one text encoder"
            raise UserError(what, "leave it out")
        if pooled and (self.embeds is None) != (self.pooled is None):
            raise UserError(f"only one of the {kind}'s two embeddings is given", "give both")
        if self.count == 0:
            raise UserError(f"a list of no {kind}s is given", "give one or more")
        return self.count


@dataclass(frozen=True)
class Words:
    """What a call says, how strongly, and of how many pictures for each prompt. `length` is in text tokens;
    None is what the backbone was trained with."""

    positive: Prompt
    negative: Prompt
    guidance: float | None
    pictures: int
    length: int | None


def _as_list(text: str | Sequence[str] | None) -> list[str] | None:
    if text is None:
        return None
    return [text] if isinstance(text, str) else list(text)


@dataclass(frozen=True)
class Condition:
    """One branch of guidance, for B pictures.

    text [B, L, D] and pooled [B, P] (None where the backbone takes none) in the backbone's dtype; text_ids
    [L, axes], image_ids [N, axes] and guidance [B] (None where the backbone embeds none) in float32.
    """

    text: torch.Tensor
    pooled: torch.Tensor | None
    text_ids: torch.Tensor
    image_ids: torch.Tensor
    guidance: torch.Tensor | None


@dataclass(frozen=True)
class Conditions:
    """The prompt and, for classifier-free guidance in two passes, the negative prompt with its scale."""

    positive: Condition
    negative: Condition | None = None
    scale: float = 1.0

    @property
    def branches(self) -> int:
        """Calls of the backbone that one guided velocity takes."""
        return 1 if self.negative is None else 2

    def map(self, change: Callable[[Condition], Condition]) -> Conditions:
        """The same change on both branches."""
        negative = None if self.negative is None else change(self.negative)
        return replace(self, positive=change(self.positive), negative=negative)

    def guided(self, kind: GuidanceKind, guidance: float | None) -> Conditions:
        """The same words at another guidance: embedded, or of two passes, which are one at 1."""
        if guidance is None or kind == "none":
            return self
        if kind == "cfg":
            return replace(self, negative=None) if guidance == 1 else replace(self, scale=guidance)
        told = torch.full((self.positive.text.shape[0],), guidance, device=self.positive.text.device)
        return self.map(lambda condition: replace(condition, guidance=told))

    def at(self, image_ids: torch.Tensor) -> Conditions:
        """The same words over another grid of image tokens."""
        return self.map(lambda condition: replace(condition, image_ids=image_ids))


def check_cfg(scale: float, negative: bool) -> None:
    """UserError where a negative prompt or a scale of classifier-free guidance would be ignored in
    silence."""
    if negative and scale == 1:
        raise UserError(
            "a negative prompt has no effect at true_cfg_scale 1", "set true_cfg_scale, to 3.5 say"
        )
    if scale != 1 and not negative:
        raise UserError(f"true_cfg_scale {scale:g} wants a negative prompt", 'give one; "" is one')
