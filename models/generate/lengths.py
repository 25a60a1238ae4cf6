"""How much of a call's prompts the text encoders will read, known before any weights are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from uhr.models.families.text import TokenCount, count_tokens
from uhr.models.generate.request import Item
from uhr.models.loading.model import load_tokenizers
from uhr.models.loading.opening import Model
from uhr.models.specs.spec import ModelSpec


def token_counts(model: Model | ModelSpec, items: Sequence[Item]) -> tuple[TokenCount, ...]:
    """The tokens of all prompts and of all negative prompts, where there are any, for each text encoder.

    Empty for a bare spec, and for a model of the hub whose tokenizers have not been fetched yet.
    """
    prompts = [item.prompt for item in items if item.prompt]
    negative = [item.negative for item in items if item.negative]
    encoders = None if isinstance(model, ModelSpec) or not (prompts or negative) else load_tokenizers(model)
    if encoders is None:
        return ()
    found = count_tokens(encoders, prompts) if prompts else ()
    others = count_tokens(encoders, negative) if negative else ()
    return (*found, *(replace(each, text=f"negative {each.text}") for each in others))
