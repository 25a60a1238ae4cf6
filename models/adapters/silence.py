"""Deactivate some of a model's adapters for a `with` block."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Generator, Sequence
from typing import Any

from uhr.base.errors import unknown
from uhr.models.adapters import peft_layers


@contextlib.contextmanager
def only(models: Sequence[Any], adapters: Collection[str]) -> Generator[None]:
    """Keep only these of the models' active adapters active, at their scales, in a `with` block.

    Raises UserError for a name that no model has, and if adapters are merged into the weights of a model
    where another would have to be deactivated.
    """
    carried = sorted({name for model in models for name in peft_layers.names(model)})
    for name in adapters:
        if name not in carried:
            raise unknown("adapter", name, carried, "base_adapters")
    before = [(model, peft_layers.active(model), peft_layers.training(model)) for model in models]
    changed = [entry for entry in before if not set(entry[1]) <= set(adapters)]
    for model, _, _ in changed:
        peft_layers.check_unmerged(model)
    try:
        for model, acting, training in changed:
            _activate(model, acting, training, adapters)
        yield
    finally:
        for model, acting, training in changed:
            peft_layers.activate(model, acting, training)


def _activate(model: Any, acting: list[str], training: list[str], adapters: Collection[str]) -> None:
    left = [name for name in acting if name in adapters]
    peft_layers.activate(model, left, [name for name in training if name in adapters])
