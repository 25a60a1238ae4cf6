"""How much of the prompts the text encoders will read, counted without weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from uhr.models.families.text import TokenCount
from uhr.models.generate.request import Item
from uhr.models.loading.model import load_tokenizers
from uhr.models.loading.opening import Model
from uhr.models.specs.spec import ModelSpec


def token_counts(model: Model | ModelSpec, items: Sequence[Item]) -> tuple[TokenCount, ...]:
    """Count the tokens of all prompts and negative prompts, for each text encoder.

    The result is empty for a bare spec, and for a hub model whose tokenizers have not been fetched yet.
    """
    from uhr.models.families.registry import FAMILIES

    prompts = [item.prompt for item in items if item.prompt]
    negative = [item.negative for item in items if item.negative]
    if isinstance(model, ModelSpec) or not (prompts or negative):
        return ()
    encoders = load_tokenizers(model)
    if encoders is None:
        return ()
    family = FAMILIES[model.spec.family]
    found = family.count(encoders, prompts) if prompts else ()
    others = family.count(encoders, negative) if negative else ()
    return (*found, *(replace(each, text=f"negative {each.text}") for each in others))
