"""A user's prompt, and the conditioning: a backbone's inputs besides latents and noise level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uhr.base.errors import UserError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Prompt:
    """Texts, or their embeddings, as the arguments of diffusers' pipelines.

    On FLUX.1 `text_2`, if given, is the text for T5, and embeddings come with a pooled vector; other families
    have neither.
    """

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
        """Return the number of prompts.

        Args:
            kind: "prompt" or "negative prompt", for the error message.
            pooled: whether the backbone has a second text and a pooled vector.

        Raises:
            UserError: unless there are either texts or embeddings, and all embeddings that belong together.
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
            raise UserError(f"an empty list of {kind}s is given", "give one or more")
        return self.count


def _as_list(text: str | Sequence[str] | None) -> list[str] | None:
    if text is None:
        return None
    return [text] if isinstance(text, str) else list(text)


@dataclass(frozen=True)
class Condition:
    """The conditioning of B images in one branch of guidance: with the prompt, or with the negative prompt.

    text [B, L, D] and pooled [B, P] (None for a backbone without it) are in the backbone's dtype;
    text_ids [L, axes], image_ids [N, axes] and guidance [B] (None if the backbone embeds none) in float32.
    """

    text: torch.Tensor
    pooled: torch.Tensor | None
    text_ids: torch.Tensor
    image_ids: torch.Tensor
    guidance: torch.Tensor | None
    attention: Any = None
    """An `attention.call.Attention` for the attention processors; None is the backbone's own attention."""
