"""What all families share on the way from texts to tensors: the encoders, the result, and how much was read.

The way itself is `Backbone.embed` of each family, for samplers and for training alike.
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

    `lengths` is the number of tokens that each encoder reads, by its name in `ModelSpec.text_lengths`. To
    count tokens the tokenizers are enough.
    """

    tokenizer: Any
    text_encoder: Any
    lengths: Mapping[str, int]
    tokenizer_2: Any = None
    text_encoder_2: Any = None


@dataclass(frozen=True)
class TokenCount:
    """How many tokens B texts have for one encoder, and how many of them the encoder reads.

    text:     what the texts are: "prompt", "second prompt", "negative prompt"
    encoder:  "t5", "clip" or "qwen3"
    tokens:   of each text; start and end tokens and the turns of a chat included
    reads:    the most that the encoder reads of a text
    decides:  whether the backbone knows no more of a text than this encoder reads. That is the encoder that
              gives the sequence; CLIP gives one pooled vector, of the first 77 tokens, and a prompt that is
              longer than that is whole as long as T5 reads it too
    """

    text: str
    encoder: str
    tokens: tuple[int, ...]
    reads: int
    decides: bool = True

    @property
    def cut(self) -> int:
        """Number of texts whose end the backbone never learns of."""
        return sum(count > self.reads for count in self.tokens) if self.decides else 0

    @property
    def note(self) -> str | None:
        """What is cut off, as a sentence for people; None where nothing is."""
        if not self.cut:
            return None
        longest = max(self.tokens)
        if len(self.tokens) == 1:
            what = f"the {self.text} has {longest:,} tokens, {self.encoder} reads {self.reads:,}"
            return f"{what}: its end is not read"
        what = f"{self.cut} of {len(self.tokens)} {self.text}s have more tokens than the {self.reads:,} that"
        return f"{what} {self.encoder} reads (the longest {longest:,}): their ends are not read"

    def describe(self) -> dict[str, Any]:
        """As JSON, for the record of an image."""
        fields = {"text": self.text, "encoder": self.encoder, "tokens": list(self.tokens)}
        return {**fields, "reads": self.reads, "cut": self.cut}


@dataclass(frozen=True)
class Embedded:
    """B encoded texts as a backbone takes them.

    texts:   the tensors by the names of `Backbone.text_tensors`, in their encoders' dtype and on their device
    counts:  how much of the texts each encoder read; empty where embeddings were given in place of texts
    """

    texts: Mapping[str, torch.Tensor]
    counts: tuple[TokenCount, ...] = ()

    def called(self, kind: str) -> Embedded:
        """The same, of texts that are of this kind: "negative" makes a "negative prompt" of a "prompt"."""
        return replace(self, counts=tuple(replace(each, text=f"{kind} {each.text}") for each in self.counts))


def notes_of(counts: Sequence[TokenCount]) -> list[str]:
    """A sentence for each kind of text of which something is cut off."""
    return [note for note in (each.note for each in counts) if note is not None]


def tokenize(tokenizer: Any, texts: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask [B, length] of texts, padded and truncated."""
    found = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return found.input_ids, found.attention_mask


def token_lengths(tokenizer: Any, texts: list[str]) -> tuple[int, ...]:
    """Tokens of each text, nothing cut off; start and end tokens included."""
    # not verbose: the tokenizer would warn of texts longer than its encoder reads, and none of these is run
    whole = tokenizer(texts, padding=False, truncation=False, verbose=False).input_ids
    return tuple(len(one) for one in whole)


def device_of(encoder: Any) -> torch.device:
    """Where the inputs of an encoder belong: offloaded weights may be elsewhere until it runs."""
    from diffusers.utils.torch_utils import get_module_execution_device

    return get_module_execution_device(encoder)
