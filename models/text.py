"""The one way from prompts to embeddings, for samplers and for training alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TextEncoders:
    """FLUX.1's two text encoders: CLIP gives one pooled vector, T5 the sequence. `lengths` is in tokens."""

    tokenizer: Any
    text_encoder: Any
    tokenizer_2: Any
    text_encoder_2: Any
    lengths: Mapping[str, int]


@dataclass(frozen=True)
class PromptEmbeds:
    """B encoded prompts.

    t5:           [B, L, D], L = lengths["t5"], every padded position included (FLUX.1 attends to them)
    pooled:       [B, P], CLIP's vector at its end token
    t5_tokens:    tokens that T5 would need for each prompt, end token included; more than L means truncated
    clip_tokens:  the same for CLIP, start and end token included
    """

    t5: torch.Tensor
    pooled: torch.Tensor
    t5_tokens: tuple[int, ...]
    clip_tokens: tuple[int, ...]


def encode_prompts(encoders: TextEncoders, prompts: Sequence[str]) -> PromptEmbeds:
    """Prompts to embeddings, in the encoders' own dtype and device, without gradients.

    Equal to `FluxPipeline.encode_prompt` with `max_sequence_length = lengths["t5"]`. T5 runs without an
    attention mask, as FLUX.1 was trained, so the length is part of the meaning: it belongs into every cache
    key.
    """
    import torch

    assert not isinstance(prompts, str), "a list of prompts"
    texts = list(prompts)
    with torch.no_grad():
        clip_ids, clip_tokens = _tokenize(encoders.tokenizer, texts, encoders.lengths["clip"])
        clip = encoders.text_encoder
        pooled = clip(clip_ids.to(clip.device), output_hidden_states=False).pooler_output
        t5_ids, t5_tokens = _tokenize(encoders.tokenizer_2, texts, encoders.lengths["t5"])
        t5 = encoders.text_encoder_2
        sequence = t5(t5_ids.to(t5.device), output_hidden_states=False)[0]
    return PromptEmbeds(sequence.to(t5.dtype), pooled.to(clip.dtype), t5_tokens, clip_tokens)


def _tokenize(tokenizer: Any, texts: list[str], length: int) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Token ids [B, length], padded and truncated, and how many each text would need."""
    ids = tokenizer(
        texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
    whole = tokenizer(texts, padding=False, truncation=False, verbose=False).input_ids
    return ids, tuple(len(one) for one in whole)
