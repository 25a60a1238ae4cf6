"""The known backbones and their families, by name. A new one is a file in `specs/` and an entry here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uhr.base.errors import UserError, unknown
from uhr.models.specs import flux1, flux2, tiny
from uhr.models.specs.family import FamilySpec
from uhr.models.specs.spec import ModelSpec

FAMILY_SPECS: Mapping[str, FamilySpec] = {family.name: family for family in (flux1.FAMILY, flux2.FAMILY)}

SPECS: Mapping[str, ModelSpec] = {spec.name: spec for spec in (*flux1.SPECS, *flux2.SPECS, *tiny.SPECS)}


def names() -> list[str]:
    """Every spec's name, in the order of the registry."""
    return list(SPECS)


def get(name: str) -> ModelSpec:
    """Return the spec of that name. Raises UserError, which suggests the nearest names, if there is none."""
    if name not in SPECS:
        raise unknown("model spec", name, SPECS)
    return SPECS[name]


def find(index: Mapping[str, Any], transformer_config: Mapping[str, Any]) -> ModelSpec | None:
    """Return the spec with this `model_index.json` and transformer configuration; None if there is none."""
    for spec in _siblings(str(index.get("_class_name"))):
        # diffusers' default for a key that the index lacks is False
        pipeline_config = {key: index.get(key, False) for key in spec.pipeline_config}
        if pipeline_config == spec.pipeline_config and _contains(transformer_config, spec.transformer_config):
            return spec
    return None


def match(index: Mapping[str, Any], transformer_config: Mapping[str, Any], where: str) -> ModelSpec:
    """Do the same as `find`, but raise UserError, in which `where` names the checkpoint, if there is none."""
    pipeline_class = str(index.get("_class_name"))
    siblings = _siblings(pipeline_class)
    if not siblings:
        known = sorted({spec.pipeline_class for spec in SPECS.values()})
        raise UserError(f"{where}: no spec is a '{pipeline_class}'", f"known pipelines: {', '.join(known)}")
    spec = find(index, transformer_config)
    if spec is not None:
        return spec
    found = {
        key: values.get(key)
        for values, of in ((transformer_config, "transformer_config"), (index, "pipeline_config"))
        for key in sorted({key for spec in siblings for key in getattr(spec, of)})
    }
    shape = ", ".join(f"{key}={value}" for key, value in found.items())
    raise UserError(
        f"{where}: no spec has this transformer ({shape})",
        f"known: {', '.join(spec.name for spec in siblings)}; to take it as one of them, name it",
        give={"spec": "NAME"},
    )


def _siblings(pipeline_class: str) -> list[ModelSpec]:
    return [spec for spec in SPECS.values() if spec.pipeline_class == pipeline_class]


def _contains(found: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    return all(found.get(key) == value for key, value in expected.items())
