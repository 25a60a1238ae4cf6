"""Which adapters act on a pipeline or a bare transformer, and how strongly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from uhr.base.errors import unknown
from uhr.models.adapters import peft_layers


def set_scales(target: Any, scales: Mapping[str, float]) -> None:
    """Let exactly these adapters act on a pipeline or a bare transformer, each this many times as strong as
    it was trained (0 is off); those that were training go on training."""
    for model in _carriers(target, scales):
        here = [name for name in scales if name in peft_layers.names(model)]
        train = [name for name in peft_layers.training(model) if name in here]
        peft_layers.activate(model, here, train)
    for name, scale in scales.items():
        set_scale(target, name, scale)


def set_scale(target: Any, name: str, scale: float) -> None:
    """Let one adapter be `scale` times as strong as it was trained, acting or not."""
    for model in _carriers(target, [name]):
        if name in peft_layers.names(model):
            for layer in peft_layers.layers_of(model, name).values():
                layer.set_scale(name, float(scale))


def _carriers(target: Any, wanted: Iterable[str]) -> list[Any]:
    """The models of `target` that carry adapters; UserError for a wanted one that none carries."""
    models = [transformer_of(target), getattr(target, "text_encoder", None)]
    carriers = [model for model in models if model is not None and peft_layers.names(model)]
    carried = sorted({name for model in carriers for name in peft_layers.names(model)})
    for name in wanted:
        if name not in carried:
            raise unknown("adapter", name, carried)
    return carriers


def transformer_of(target: Any) -> Any:
    """The backbone of a pipeline, or the transformer itself."""
    return getattr(target, "transformer", target)
