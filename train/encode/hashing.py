"""Hashes of a model's components, as encoding and checkpoints keep them."""

from __future__ import annotations

from uhr.base.config import fingerprint
from uhr.models.loading.hashes import config_of, shown_hash
from uhr.models.zoo import Model


def shown_weights_hash(model: Model, component: str) -> str:
    """The hash of a component's weights; a long one shows its progress."""
    return shown_hash(model.place(component), component)


def component_hash(model: Model, name: str) -> str:
    """Of a component's weights and of its configuration (64 hex digits)."""
    return fingerprint([shown_weights_hash(model, name), config_of(model.config_folder(name))])
