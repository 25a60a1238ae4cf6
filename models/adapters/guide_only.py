"""Which adapters act on UltraGen's guide tokens alone, and how they are kept to them for a call."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator, Sequence
from typing import Any

from uhr.models.adapters import peft_layers
from uhr.models.adapters.masked import Masked, TokenMask, mask_adapter, masks

BLOCK = re.compile(r"(?P<kind>(?:single_)?transformer_blocks)\.\d+\.")

_SINGLE = ("norm.linear", "proj_mlp", "proj_out", "attn.to_q", "attn.to_k", "attn.to_v")
_DOUBLE = ("norm1.linear", "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.net.2")
PUBLISHED = frozenset(
    {"x_embedder"}
    | {f"single_transformer_blocks.{leaf}" for leaf in _SINGLE}
    | {f"transformer_blocks.{leaf}" for leaf in _DOUBLE}
)
"""The linears of UltraGen's (Scale-DiT's) published LoRA on FLUX.1, block numbers left out (its code)."""


def is_published(transformer: Any, name: str) -> bool:
    """Whether an adapter on the model adapts exactly the linears that UltraGen's does, by which alone it is
    known: image and joint streams with their modulations and the embedder, and nothing of the text stream."""
    paths = peft_layers.layers_of(transformer, name)
    return {BLOCK.sub(r"\g<kind>.", path) for path in paths} == PUBLISHED


@contextlib.contextmanager
def guide_only(transformer: Any, named: Sequence[str] | None) -> Generator[list[str]]:
    """Keep adapters to the guide's tokens for a `with` block; yields the names of those that are.

    `named` are to be kept so; None are those that `is_published` recognises. Adapters that were masked before
    stay so. Outside a guide's pass (base, image, text) none of them acts; all is as it was afterwards.
    """
    acting = peft_layers.active(transformer)
    plain = [name for name in acting if not _masked(transformer, name)]
    chosen = [name for name in plain if is_published(transformer, name)] if named is None else list(named)
    mask, before = TokenMask(), [(each, each.told) for each in masks(transformer)]
    added = [name for name in chosen if not _masked(transformer, name)]
    for name in added:
        mask_adapter(transformer, name, mask)
    for each in masks(transformer):
        each.tell()
    try:
        yield [name for name in acting if _masked(transformer, name)]
    finally:
        for name in added:
            for layer in peft_layers.layers_of(transformer, name).values():
                del layer.lora_variant[name]
        for each, told in before:
            each.told = told


def _masked(transformer: Any, name: str) -> bool:
    layers = peft_layers.layers_of(transformer, name).values()
    return any(isinstance(peft_layers.variant_of(layer, name), Masked) for layer in layers)
