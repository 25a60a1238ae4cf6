"""Set which adapters of a pipeline or a bare transformer are active, and their scales."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from uhr.base.errors import unknown
from uhr.models.adapters import peft_layers


def set_scales(target: Any, scales: Mapping[str, float]) -> None:
    """Make exactly these adapters of a pipeline or a bare transformer active, each at its scale.

    1 is the strength that it was trained at, 0 is off. Those that were training continue to train.
    """
    for model in _carriers(target, scales):
        here = [name for name in scales if name in peft_layers.names(model)]
        train = [name for name in peft_layers.training(model) if name in here]
        peft_layers.activate(model, here, train)
    for name, scale in scales.items():
        set_scale(target, name, scale)


def set_scale(target: Any, name: str, scale: float) -> None:
    """Set the scale of one adapter, active or not; 1 is the strength that it was trained at."""
    for model in _carriers(target, [name]):
        if name in peft_layers.names(model):
            for layer in peft_layers.layers_of(model, name).values():
                layer.set_scale(name, float(scale))


def _carriers(target: Any, needed: Iterable[str]) -> list[Any]:
    """Return the models of `target` that have adapters. Raises UserError for a needed one that none has."""
    models = [transformer_of(target), getattr(target, "text_encoder", None)]
    carriers = [model for model in models if model is not None and peft_layers.names(model)]
    carried = sorted({name for model in carriers for name in peft_layers.names(model)})
    for name in needed:
        if name not in carried:
            raise unknown("adapter", name, carried)
    return carriers


def transformer_of(target: Any) -> Any:
    """Return the backbone of a pipeline, or the transformer itself."""
    return getattr(target, "transformer", target)
