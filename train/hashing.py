"""Hashes of weights, with a bar: reading 24 GB takes minutes."""

from __future__ import annotations

import json

from uhr.base.config import fingerprint
from uhr.base.console import progress
from uhr.models.loading import weight_files
from uhr.models.zoo import Model, weights_hash

QUICK = 500_000_000
"""Bytes that are hashed before anybody wonders."""

_MB = 1_000_000


def shown_weights_hash(model: Model, component: str) -> str:
    """`weights_hash`; what is long shows its progress."""
    folder = model.folder / component
    size = sum(file.stat().st_size for file in weight_files(folder))
    if size < QUICK:
        return weights_hash(model, component)
    done = 0
    with progress(f"hash {component}", size // _MB, "MB") as advance:

        def more(count: int) -> None:
            nonlocal done
            before, done = done, done + count
            advance(done // _MB - before // _MB)

        return weights_hash(model, component, more)


def component_hash(model: Model, name: str) -> str:
    """Of a component's weights and of its configuration (64 hex digits)."""
    file = model.folder / name / "config.json"
    tree = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    # keys with an underscore say where the file was saved and by which version
    config = {key: value for key, value in tree.items() if not key.startswith("_")}
    return fingerprint([shown_weights_hash(model, name), config])
