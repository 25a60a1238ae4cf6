"""Hashes of a model's components, as encoding and checkpoints keep them."""

from __future__ import annotations

import json

from uhr.base.config import fingerprint
from uhr.models.hashes import shown_hash
from uhr.models.zoo import Model


def shown_weights_hash(model: Model, component: str) -> str:
    """`weights_hash`; what is long shows its progress."""
    return shown_hash(model.folder / component, component)


def component_hash(model: Model, name: str) -> str:
    """Of a component's weights and of its configuration (64 hex digits)."""
    file = model.folder / name / "config.json"
    tree = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    # keys with an underscore say where the file was saved and by which version
    config = {key: value for key, value in tree.items() if not key.startswith("_")}
    return fingerprint([shown_weights_hash(model, name), config])
