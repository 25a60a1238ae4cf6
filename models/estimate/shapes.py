"""A model's components without weights: the real classes on torch's meta device, from a spec or a
checkpoint's configurations."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from uhr.base.files import user_path
from uhr.base.quiet import quiet_loading
from uhr.models.loading.opening import Model
from uhr.models.specs.registry import SPECS
from uhr.models.specs.spec import ModelSpec

if TYPE_CHECKING:
    from torch import nn


def spec_named(model: str) -> ModelSpec | None:
    """Return the spec with this name or hub id; None if there is none, or if a folder has that name."""
    if user_path(model).exists():
        return None
    hub_id = model.partition("@")[0]
    return next((spec for spec in SPECS.values() if model == spec.name or hub_id == spec.hub_id), None)


def empty_components(model: Model | ModelSpec) -> dict[str, nn.Module]:
    """Build every component that has parameters on the meta device, by its folder's name.

    A component has the configuration of the model's own config.json. Where that is not on this machine, and
    for a bare spec, it has the configuration that is published for the spec.
    """
    spec = model.spec if isinstance(model, Model) else model
    made = {}
    for name in spec.components:
        cls = component_class(spec, name)
        if not hasattr(cls, "parameters"):
            continue
        folder = model.config_folder(name) if isinstance(model, Model) else None
        if isinstance(model, Model) and folder is not None and (folder / "config.json").is_file():
            made[name] = _of_folder(cls, name, folder, model.changes(name))
        else:
            made[name] = empty_component(spec, name)
    return made


def component_class(spec: ModelSpec, name: str) -> Any:
    """Return the class of a component (`transformer`, `text_encoder_2`, ...); its library is imported."""
    library, _, class_name = spec.components[name].partition(":")
    return getattr(importlib.import_module(library), class_name)


def empty_component(spec: ModelSpec, name: str) -> nn.Module:
    """Build one component of a bare spec on the meta device."""
    if spec.tiny:
        from uhr.models.families.tiny import component

        return _on_meta(lambda: component(spec, name))
    config = spec.transformer_config if name == "transformer" else spec.configs[name]
    return _made(component_class(spec, name), config)


def _of_folder(cls: Any, name: str, folder: Any, changes: Mapping[str, Any]) -> nn.Module:
    if hasattr(cls, "load_config"):
        made = _made(cls, {**cls.load_config(folder, local_files_only=True), **changes})
    else:
        made = _made(cls, cls.config_class.from_pretrained(folder, local_files_only=True).to_dict())
    if name == "vae":
        from uhr.models.vae.f16 import restore

        restore(made)
    return made


def _made(cls: Any, config: Mapping[str, Any]) -> nn.Module:
    if hasattr(cls, "from_config") and hasattr(cls, "load_config"):
        return _on_meta(lambda: cls.from_config(dict(config)))
    return _on_meta(lambda: cls(cls.config_class(**config)))


def _on_meta(make: Any) -> nn.Module:
    import torch

    with torch.device("meta"), quiet_loading():
        return make().eval().requires_grad_(False)
