"""The command that `uhr train encode` suggests: a recipe for what it stored."""

from __future__ import annotations

from pathlib import Path

from uhr.manifests.manifest import Manifest
from uhr.models.specs.registry import get
from uhr.train.encode.stored.encoded import EncodedInfo
from uhr.train.recipes import resolve
from uhr.train.recipes.core.base import Recipe


def for_encoded(info: EncodedInfo, folder: Path | str) -> tuple[str, list[str]]:
    """A recipe for encoded data, and the changes, as `path=value`, that make it fit them.

    folder: where they are; also an address.
    """
    if not info.config.pixels:
        # a guide is of use to UltraGen alone
        name = "lora" if info.config.guide is None else "ultragen"
        recipe = resolve(name)
        assert isinstance(recipe, Recipe)
        return name, recipe.changes_for(get(info.model.spec))
    recipe = resolve("vae-f16")
    (phase,) = recipe.phases
    where, changes = f"phases.{phase.name}", []
    if info.resolution != phase.resolution:
        changes.append(f"{where}.resolution={info.resolution}")
    missing = set(phase.data[0].lowest) - set(Manifest.open(folder).schema.names)
    if missing:
        changes.append(f"{where}.data.0.lowest={{}}")
    files = ("network_file=VGG16.pth", "heads_file=LPIPS.pth")
    return "vae-f16", [*changes, *(f"{where}.objective.perceptual.{file}" for file in files)]
