"""Types and functions for encoding texts that all families share: encoders, results, and token counts.

The encoding itself is `Backbone.embed` of each family, for samplers and for training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TextEncoders:
    """A family's text encoders with their tokenizers; the second ones are None in a family that has one.

    `lengths` is the number of tokens that each encoder reads, by its name in `ModelSpec.text_lengths`. The
    encoders may be None if tokens are only counted.
    """

    tokenizer: Any
    text_encoder: Any
    lengths: Mapping[str, int]
    tokenizer_2: Any = None
    text_encoder_2: Any = None


@dataclass(frozen=True)
class TokenCount:
    """How many tokens B texts have for one encoder, and how many of them the encoder reads.

    text:     the kind of the texts: "prompt", "second prompt", "negative prompt"
    encoder:  "t5", "clip" or "qwen3"
    tokens:   the tokens of each text, with start and end tokens and the turns of a chat
    reads:    the most tokens that the encoder reads of a text
    decides:  whether tokens beyond that are lost to the backbone. That is so for the encoder of the sequence;
              CLIP makes one pooled vector of the first 77 tokens, and a longer prompt is not cut as long as
              T5 reads all of it
    """

    text: str
    encoder: str
    tokens: tuple[int, ...]
    reads: int
    decides: bool = True

    @property
    def cut(self) -> int:
        """Number of texts whose end is lost to the backbone."""
        return sum(count > self.reads for count in self.tokens) if self.decides else 0

    @property
    def note(self) -> str | None:
        """A sentence for the user about the texts that are cut; None if none is."""
        if not self.cut:
            return None
        longest = max(self.tokens)
        if len(self.tokens) == 1:
            what = f"the {self.text} has {longest:,} tokens, {self.encoder} reads {self.reads:,}"
            return f"{what}: its end is not read"
        what = f"{self.cut} of {len(self.tokens)} {self.text}s have more tokens than the {self.reads:,} that"
        return f"{what} {self.encoder} reads (the longest {longest:,}): their ends are not read"

    def describe(self) -> dict[str, Any]:
        """Return JSON for the record of an image."""
        fields = {"text": self.text, "encoder": self.encoder, "tokens": list(self.tokens)}
        return {**fields, "reads": self.reads, "cut": self.cut}


@dataclass(frozen=True)
class Embedded:
    """B encoded texts, the inputs of a backbone.

    texts:   the tensors by the names of `Backbone.text_tensors`, in their encoders' dtype and on their device
    counts:  how much of the texts each encoder read; empty if embeddings were given in place of texts
    """

    texts: Mapping[str, torch.Tensor]
    counts: tuple[TokenCount, ...] = ()

    def called(self, kind: str) -> Embedded:
        """Return the same with the kind before the texts' names: with "negative", a "prompt" becomes a
        "negative prompt"."""
        return replace(self, counts=tuple(replace(each, text=f"{kind} {each.text}") for each in self.counts))


def notes_of(counts: Sequence[TokenCount]) -> list[str]:
    """Return a sentence for each kind of text that is cut."""
    return [note for note in (each.note for each in counts) if note is not None]


def tokenize(tokenizer: Any, texts: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the token ids and attention mask [B, length] of texts, padded and truncated."""
    found = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return found.input_ids, found.attention_mask


def token_lengths(tokenizer: Any, texts: list[str]) -> tuple[int, ...]:
    """Return the number of tokens of each text, not truncated, with start and end tokens."""
    # not verbose: it would warn of texts longer than its encoder reads, but these are not encoded
    whole = tokenizer(texts, padding=False, truncation=False, verbose=False).input_ids
    return tuple(len(one) for one in whole)


def device_of(encoder: Any) -> torch.device:
    """Return the device for an encoder's inputs; offloaded weights may be elsewhere until it runs."""
    from diffusers.utils.torch_utils import get_module_execution_device

    return get_module_execution_device(encoder)
