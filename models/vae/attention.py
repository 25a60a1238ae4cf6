"""The VAE's mid-block attention, exact, without a score matrix over all pairs of tokens.

At 4096 x 4096 pixels it has 262,144 tokens of 512 channels, at 8192 x 8192 four times as many: all keys and
values are in memory (in the dtype of the pass), queries are processed band by band.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from uhr.models.vae.stream import Norm, Pass, Shape, cast

BLOCK = 2048, 2048
GPU_BLOCK = 4096, 16384
"""Queries and keys per block where no fused kernel runs. The float32 scores of a block take 16 MiB on a CPU
and 256 MiB on a GPU, which smaller products would not keep busy."""


@dataclass(frozen=True)
class VaeAttention:
    """diffusers' `Attention` as the VAEs use it: group norm, biased projections, residual."""

    module: Any

    @property
    def norm(self) -> Norm:
        return Norm(self.module.group_norm)

    def shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def flops(self, input_shape: Shape) -> int:
        tokens = input_shape.height * input_shape.width
        return 8 * tokens * input_shape.channels**2 + 4 * tokens**2 * input_shape.channels


Bands = Iterable[tuple[torch.Tensor, bool]]


def keys_and_values(layer: VaeAttention, bands: Bands, shape: Shape, run: Pass) -> list[torch.Tensor]:
    """Project the whole image to keys and values: two tensors [1, heads, H * W, C / heads]."""
    normalise, heads = layer.norm.start(run), layer.module.heads
    size = (1, heads, shape.height * shape.width, layer.module.to_k.out_features // heads)
    both: list[torch.Tensor] = []
    done = 0
    for band, last in bands:
        tokens = _tokens(normalise(band, last))
        both = both or [tokens.new_empty(size) for _ in range(2)]
        for whole, linear in zip(both, (layer.module.to_k, layer.module.to_v), strict=True):
            whole[:, :, done : done + tokens.shape[1]] = _heads(_linear(linear, tokens), heads)
        done += tokens.shape[1]
    return both


def attend(layer: VaeAttention, band: torch.Tensor, both: list[torch.Tensor], run: Pass) -> torch.Tensor:
    """Return the layer's output for one band, [1, C, n, W]; `both` are the keys and values."""
    module = layer.module
    tokens = _tokens(layer.norm.start(run)(band, False))
    query = _heads(_linear(module.to_q, tokens), module.heads)
    mixed = scaled_dot_product(query, *both).transpose(1, 2).flatten(2)
    out = _linear(module.to_out[0], mixed).transpose(1, 2).reshape(band.shape)
    if module.residual_connection:
        out += band
    return out.div_(module.rescale_output_factor)


def scaled_dot_product(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Compute softmax(q k' / sqrt(d)) v for [1, heads, tokens, d]; memory is linear in the tokens."""
    backend = _fused(query, key, value)
    if backend is None:
        return in_blocks(query, key, value)
    with sdpa_kernel([backend]):
        return F.scaled_dot_product_attention(query, key, value)


def _fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> SDPBackend | None:
    """Return a kernel whose memory is linear in the tokens; torch's own choice may be quadratic."""
    if query.device.type == "cpu":
        return SDPBackend.FLASH_ATTENTION
    if query.device.type == "cuda":
        from torch.backends.cuda import SDPAParams, can_use_efficient_attention

        if can_use_efficient_attention(SDPAParams(query, key, value, None, 0.0, False, False)):
            return SDPBackend.EFFICIENT_ATTENTION
    return None


def in_blocks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, block: tuple[int, int] | None = None
) -> torch.Tensor:
    """Compute `scaled_dot_product` by blocks of (queries, keys) with a running softmax in float32."""
    queries, keys = block or (BLOCK if query.device.type == "cpu" else GPU_BLOCK)
    done = [_one_block(part, key, value, keys) for part in query.split(queries, dim=2)]
    return torch.cat(done, dim=2)


def _one_block(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, block: int) -> torch.Tensor:
    shape = query.shape[:-1]
    top = torch.full((*shape, 1), -torch.inf, device=query.device)
    total = torch.zeros_like(top)
    out = torch.zeros(*shape, value.shape[-1], device=query.device)
    for keys, values in zip(key.split(block, dim=2), value.split(block, dim=2), strict=True):
        scores = _product(query, keys.transpose(-1, -2)).mul_(query.shape[-1] ** -0.5)
        new_top = torch.maximum(top, scores.amax(-1, keepdim=True))
        weights = scores.sub_(new_top).exp_()
        fade = (top - new_top).exp_()
        total = total * fade + weights.sum(-1, keepdim=True)
        out = out * fade + _product(weights.to(query.dtype), values)
        top = new_top
    return (out / total).to(query.dtype)


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Compute a @ b in float32, [1, heads, n, m]; a GPU multiplies half precision and sums in float32."""
    if a.device.type == "cuda" and a.dtype != torch.float32:
        return torch.bmm(a[0], b[0], out_dtype=torch.float32)[None]
    return a.float() @ b.float()


def _tokens(band: torch.Tensor) -> torch.Tensor:
    return band.flatten(2).transpose(1, 2)


def _heads(tokens: torch.Tensor, heads: int) -> torch.Tensor:
    return tokens.unflatten(2, (heads, -1)).transpose(1, 2)


def _linear(module: nn.Linear, tokens: torch.Tensor) -> torch.Tensor:
    bias = None if module.bias is None else cast(module.bias, tokens)
    return F.linear(tokens, cast(module.weight, tokens), bias)
