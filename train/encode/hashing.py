"""Hashes of a model's components, for encoded data and checkpoints."""

from __future__ import annotations

from uhr.base.config import fingerprint
from uhr.models.loading.hashes import config_of, shown_hash
from uhr.models.zoo import Model


def shown_weights_hash(model: Model, component: str) -> str:
    """Hash a component's weights, with a progress bar if it takes long."""
    return shown_hash(model.place(component), component)


def component_hash(model: Model, name: str) -> str:
    """Hash a component's weights and configuration (64 hex digits)."""
    return fingerprint([shown_weights_hash(model, name), config_of(model.config_folder(name))])
