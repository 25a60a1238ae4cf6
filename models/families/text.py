"""The one way from prompts to embeddings, for samplers and for training alike, and how much of each prompt
the encoders read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TextEncoders:
    """FLUX.1's two text encoders: CLIP gives one pooled vector, T5 the sequence. `lengths` is in tokens. To
    count tokens the tokenizers are enough."""

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
    """FLUX.2 [klein]'s text encoder, a chat model. `lengths` is in tokens; to count them the tokenizer is
    enough."""

    tokenizer: Any
    text_encoder: Any
    lengths: Mapping[str, int]


@dataclass(frozen=True)
class ChatEmbeds:
    """B encoded prompts: `text` [B, L, 3 D], L = lengths["qwen3"], padded positions included; `tokens` that
    each prompt would need, the turns around it included (more than L means truncated)."""

    text: torch.Tensor
    tokens: tuple[int, ...]


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
    """Encoded texts as a backbone takes them: `text` [B, L, D], `pooled` [B, P] (None where the family has no
    such vector), and how much of the texts was read (empty where embeddings were given in place of texts)."""

    text: torch.Tensor
    pooled: torch.Tensor | None
    counts: tuple[TokenCount, ...] = ()

    def called(self, kind: str) -> Embedded:
        """The same, of texts that are of this kind: "negative" makes a "negative prompt" of a "prompt"."""
        return replace(self, counts=tuple(replace(each, text=f"{kind} {each.text}") for each in self.counts))


CHAT_LAYERS = (9, 18, 27)
"""Qwen3's hidden states that FLUX.2 [klein] reads, side by side."""


def embed_chat(encoder: ChatEncoder, prompts: Sequence[str], layers: Sequence[int] = CHAT_LAYERS) -> Embedded:
    """`encode_chat` as a backbone takes it."""
    found = encode_chat(encoder, prompts, layers)
    return Embedded(found.text, None, _chat_counts(encoder, found.tokens))


def encode_chat(
    encoder: ChatEncoder, prompts: Sequence[str], layers: Sequence[int] = CHAT_LAYERS
) -> ChatEmbeds:
    """Prompts to embeddings, in the encoder's own dtype and device, without gradients.

    Equal to `Flux2KleinPipeline.encode_prompt` with `max_sequence_length = lengths["qwen3"]`: each prompt is
    a user's turn in the tokenizer's chat template, without thinking; padding is masked in the encoder, and
    what it computes there is part of the result.
    """
    import torch

    assert not isinstance(prompts, str), "a list of prompts"
    ids, mask, tokens = _tokenize(
        encoder.tokenizer, _turns(encoder.tokenizer, prompts), encoder.lengths["qwen3"]
    )
    model = encoder.text_encoder
    device = _device(model)
    with torch.no_grad():
        states = model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
    return ChatEmbeds(torch.cat([states[layer] for layer in layers], dim=-1).to(model.dtype), tokens)


def embed_prompts(
    encoders: TextEncoders, prompts: Sequence[str], prompts_2: Sequence[str] | None = None
) -> Embedded:
    """`encode_prompts` as a backbone takes it."""
    found = encode_prompts(encoders, prompts, prompts_2)
    counts = _prompt_counts(encoders, found.t5_tokens, found.clip_tokens, prompts_2 is not None)
    return Embedded(found.t5, found.pooled, counts)


def encode_prompts(
    encoders: TextEncoders, prompts: Sequence[str], prompts_2: Sequence[str] | None = None
) -> PromptEmbeds:
    """Prompts to embeddings, in the encoders' own dtype and device, without gradients. `prompts_2` go to T5
    in place of `prompts`, which then go to CLIP alone.

    Equal to `FluxPipeline.encode_prompt` with `max_sequence_length = lengths["t5"]`. T5 runs without an
    attention mask, as FLUX.1 was trained, so the length is part of the meaning: it belongs into every cache
    key.
    """
    import torch

    assert not isinstance(prompts, str), "a list of prompts"
    texts, texts_2 = list(prompts), list(prompts if prompts_2 is None else prompts_2)
    with torch.no_grad():
        clip_ids, _, clip_tokens = _tokenize(encoders.tokenizer, texts, encoders.lengths["clip"])
        clip = encoders.text_encoder
        pooled = clip(clip_ids.to(_device(clip)), output_hidden_states=False).pooler_output
        t5_ids, _, t5_tokens = _tokenize(encoders.tokenizer_2, texts_2, encoders.lengths["t5"])
        t5 = encoders.text_encoder_2
        sequence = t5(t5_ids.to(_device(t5)), output_hidden_states=False)[0]
    return PromptEmbeds(sequence.to(t5.dtype), pooled.to(clip.dtype), t5_tokens, clip_tokens)


def count_tokens(encoders: TextEncoders | ChatEncoder, prompts: Sequence[str]) -> tuple[TokenCount, ...]:
    """What `embed_chat` or `embed_prompts` would count, by the tokenizers alone."""
    if isinstance(encoders, ChatEncoder):
        return _chat_counts(encoders, _lengths(encoders.tokenizer, _turns(encoders.tokenizer, prompts)))
    t5, clip = (_lengths(each, list(prompts)) for each in (encoders.tokenizer_2, encoders.tokenizer))
    return _prompt_counts(encoders, t5, clip, two=False)


def notes_of(counts: Sequence[TokenCount]) -> list[str]:
    """A sentence for each kind of text of which something is cut off."""
    return [note for note in (each.note for each in counts) if note is not None]


def _turns(tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        for prompt in prompts
    ]


def _chat_counts(encoder: ChatEncoder, tokens: tuple[int, ...]) -> tuple[TokenCount, ...]:
    return (TokenCount("prompt", "qwen3", tokens, encoder.lengths["qwen3"]),)


def _prompt_counts(
    encoders: TextEncoders, t5: tuple[int, ...], clip: tuple[int, ...], two: bool
) -> tuple[TokenCount, ...]:
    """With two prompts T5 does not see the first one, so that CLIP alone decides what of it is read."""
    return (
        TokenCount("second prompt" if two else "prompt", "t5", t5, encoders.lengths["t5"]),
        TokenCount("prompt", "clip", clip, encoders.lengths["clip"], decides=two),
    )


def _tokenize(
    tokenizer: Any, texts: list[str], length: int
) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
    """Token ids and attention mask [B, length], padded and truncated, and how many each text would need."""
    found = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return found.input_ids, found.attention_mask, _lengths(tokenizer, texts)


def _lengths(tokenizer: Any, texts: list[str]) -> tuple[int, ...]:
    """Tokens of each text, nothing cut off. Not verbose: what the tokenizer would warn of is never run."""
    whole = tokenizer(texts, padding=False, truncation=False, verbose=False).input_ids
    return tuple(len(one) for one in whole)


def _device(model: Any) -> torch.device:
    """Where the model's inputs belong: offloaded weights may be elsewhere until it runs."""
    from diffusers.utils.torch_utils import get_module_execution_device

    return get_module_execution_device(model)
