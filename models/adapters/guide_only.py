"""Restrict adapters to UltraGen's guide tokens for a call."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import Any

from uhr.models.adapters import peft_layers
from uhr.models.adapters.formats.published import is_ultragens
from uhr.models.adapters.masked import Masked, TokenMask, mask_adapter, masks


def is_published(transformer: Any, name: str) -> bool:
    """Whether an adapter on the model is UltraGen's, by the modules that it adapts."""
    return is_ultragens(peft_layers.layers_of(transformer, name))


@contextlib.contextmanager
def guide_only(transformer: Any, named: Sequence[str] | None) -> Generator[list[str]]:
    """Restrict adapters to the guide's tokens in a `with` block; yield the names of all that are restricted.

    `named` are those to restrict; None are those that `is_published` recognises. Adapters that were masked
    before stay so. Outside a guide's pass (base, image, text) none of them acts. The model is restored after
    the block.
    """
    acting = peft_layers.active(transformer)
    plain = [name for name in acting if not _masked(transformer, name)]
    chosen = [name for name in plain if is_published(transformer, name)] if named is None else list(named)
    mask, former = TokenMask(), [(each, each.chosen) for each in masks(transformer)]
    added = [name for name in chosen if not _masked(transformer, name)]
    layers = [(name, each) for name in added for each in peft_layers.layers_of(transformer, name).values()]
    before = [each.lora_variant.pop(name, None) for name, each in layers]
    for name in added:
        mask_adapter(transformer, name, mask)
    for each in masks(transformer):
        each.choose()
    try:
        yield [name for name in acting if _masked(transformer, name)]
    finally:
        for (name, layer), variant in zip(layers, before, strict=True):
            del layer.lora_variant[name]
            if variant is not None:
                layer.lora_variant[name] = variant
        for each, chosen in former:
            each.chosen = chosen


def _masked(transformer: Any, name: str) -> bool:
    layers = peft_layers.layers_of(transformer, name).values()
    return any(isinstance(peft_layers.variant_of(layer, name), Masked) for layer in layers)
