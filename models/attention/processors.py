"""Attention processors that use the call's `attention`, and equal diffusers' own without one.

A call passes it by `joint_attention_kwargs={"attention": ...}` (`call.py`). Everything else, projections,
norms, rotary embedding, output projections, is the stock processor's arithmetic; so are attention backends
and parallelism where no `attention` is given. The processors have no weights and add nothing to a model's
state dict.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from diffusers.models.transformers.transformer_flux2 import Flux2AttnProcessor, Flux2ParallelSelfAttnProcessor

Rotary = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of the joint sequence, float32 [S, head_dim] each."""


class Attend(ABC):
    """The `attention` of a processor: how one transformer call, or one pass of its guide, attends."""

    @abstractmethod
    def attend(
        self, layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rotary: Rotary
    ) -> torch.Tensor:
        """Attend with rotated joint text and image query, key and value [B, S, H, D] -> [B, S, H, D].

        `layer` is the processor that calls, `rotary` the block's rotary embedding.
        """


class _JointProcessor:
    """What the processors of `FluxAttention` and `Flux2Attention` share; before the stock class in their
    bases."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Any = None,
        attention: Attend | None = None,
    ) -> Any:
        if attention is None:
            stock: Any = super().__call__  # ty: ignore[missing-attribute]
            return stock(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        assert attention_mask is None, "the call's attention has its own rules"
        joint = _attended(self, attn, hidden_states, encoder_hidden_states, image_rotary_emb, attention)
        if encoder_hidden_states is None:
            return joint
        return _project_streams(attn, joint, encoder_hidden_states.shape[1])


class FluxProcessor(_JointProcessor, FluxAttnProcessor):
    """For `FluxAttention`, in double blocks (text and image apart) and single blocks (one joint sequence)."""


class Flux2Processor(_JointProcessor, Flux2AttnProcessor):
    """For `Flux2Attention`, in double blocks, which always have a text."""


class Flux2SingleProcessor(Flux2ParallelSelfAttnProcessor):
    """For `Flux2ParallelSelfAttention`, in single blocks, whose projections are fused with the
    feed-forward's."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Any = None,
        attention: Attend | None = None,
    ) -> torch.Tensor:
        if attention is None:
            return super().__call__(attn, hidden_states, attention_mask, image_rotary_emb)
        assert attention_mask is None, "the call's attention has its own rules"
        joint = attn.to_qkv_mlp_proj(hidden_states)
        attended, fed = 3 * attn.inner_dim, attn.mlp_hidden_dim * attn.mlp_mult_factor
        # by ratio: under tensor parallelism a rank has an equal share of each
        width = joint.shape[-1] * attended // (attended + fed)
        qkv, mlp = joint[..., :width], joint[..., width:]
        query, key, value = (x.unflatten(-1, (-1, attn.head_dim)) for x in qkv.chunk(3, dim=-1))
        query, key = attn.norm_q(query), attn.norm_k(key)
        out = _rotated(self, attention, query, key, value, image_rotary_emb)
        return attn.to_out(torch.cat([out, attn.mlp_act_fn(mlp)], dim=-1))


def _attended(
    layer: Any,
    attn: Any,
    image: torch.Tensor,
    text: torch.Tensor | None,
    rotary: Any,
    attention: Attend,
) -> torch.Tensor:
    """Attend over the joint sequence, without the output projections: [B, S, heads * head_dim]."""
    query, key, value = _heads(attn, attn.to_qkv if attn.fused_projections else None, image)
    query, key = attn.norm_q(query), attn.norm_k(key)
    if text is not None:
        fused = attn.to_added_qkv if attn.fused_projections else None
        added_query, added_key, added_value = _heads(attn, fused, text, added=True)
        query = torch.cat([attn.norm_added_q(added_query), query], dim=1)
        key = torch.cat([attn.norm_added_k(added_key), key], dim=1)
        value = torch.cat([added_value, value], dim=1)
    return _rotated(layer, attention, query, key, value, rotary)


def _heads(attn: Any, fused: Any, hidden: torch.Tensor, added: bool = False) -> list[torch.Tensor]:
    """Query, key and value of one stream, [B, S, H, D] each."""
    if fused is not None:
        parts = fused(hidden).chunk(3, dim=-1)
    elif added:
        parts = (attn.add_q_proj(hidden), attn.add_k_proj(hidden), attn.add_v_proj(hidden))
    else:
        parts = (attn.to_q(hidden), attn.to_k(hidden), attn.to_v(hidden))
    # heads absorb the -1: a rank of tensor parallelism has only some of them
    return [part.unflatten(-1, (-1, attn.head_dim)) for part in parts]


def _rotated(
    layer: Any,
    attention: Attend,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rotary: Any,
) -> torch.Tensor:
    """Apply the rotary embedding and attend; heads are concatenated: [B, S, heads * head_dim]."""
    assert rotary is not None, "the transformer gives its blocks no rotary embedding"
    rotated: Any = [apply_rotary_emb(x, rotary, sequence_dim=1) for x in (query, key)]
    return attention.attend(layer, *rotated, value, rotary).flatten(2, 3).to(value.dtype)


def _project_streams(attn: Any, joint: torch.Tensor, text: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a double block's outputs: image, then text."""
    image = attn.to_out[1](attn.to_out[0](joint[:, text:].contiguous()))
    return image, attn.to_add_out(joint[:, :text].contiguous())
