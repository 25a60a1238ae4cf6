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


@dataclass(frozen=True)
class ChatEncoder:
    """FLUX.2 [klein]'s text encoder, a chat model. `lengths` is in tokens."""

    tokenizer: Any
    text_encoder: Any
    lengths: Mapping[str, int]


@dataclass(frozen=True)
class ChatEmbeds:
    """B encoded prompts: `text` [B, L, 3 D], L = lengths["qwen3"], padded positions included; `tokens` that
    each prompt would need, the turns around it included (more than L means truncated)."""

    text: torch.Tensor
    tokens: tuple[int, ...]


CHAT_LAYERS = (9, 18, 27)
"""Qwen3's hidden states that FLUX.2 [klein] reads, side by side."""


def encode_chat(encoder: ChatEncoder, prompts: Sequence[str]) -> ChatEmbeds:
    """Prompts to embeddings, in the encoder's own dtype and device, without gradients.

    Equal to `Flux2KleinPipeline.encode_prompt` with `max_sequence_length = lengths["qwen3"]`: each prompt is
    a user's turn in the tokenizer's chat template, without thinking; padding is masked in the encoder, and
    what it computes there is part of the result.
    """
    import torch

    assert not isinstance(prompts, str), "a list of prompts"
    turns = [
        encoder.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        for prompt in prompts
    ]
    ids, mask, tokens = _tokenize(encoder.tokenizer, turns, encoder.lengths["qwen3"])
    model = encoder.text_encoder
    with torch.no_grad():
        states = model(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
    return ChatEmbeds(torch.cat([states[layer] for layer in CHAT_LAYERS], dim=-1), tokens)


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
        clip_ids, _, clip_tokens = _tokenize(encoders.tokenizer, texts, encoders.lengths["clip"])
        clip = encoders.text_encoder
        pooled = clip(clip_ids.to(clip.device), output_hidden_states=False).pooler_output
        t5_ids, _, t5_tokens = _tokenize(encoders.tokenizer_2, texts, encoders.lengths["t5"])
        t5 = encoders.text_encoder_2
        sequence = t5(t5_ids.to(t5.device), output_hidden_states=False)[0]
    return PromptEmbeds(sequence.to(t5.dtype), pooled.to(clip.dtype), t5_tokens, clip_tokens)


def _tokenize(
    tokenizer: Any, texts: list[str], length: int
) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
    """Token ids and attention mask [B, length], padded and truncated, and how many each text would need."""
    found = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    whole = tokenizer(texts, padding=False, truncation=False, verbose=False).input_ids
    return found.input_ids, found.attention_mask, tuple(len(one) for one in whole)
