"""What a loaded pipeline's backbone was trained at."""

from __future__ import annotations

from typing import Any

from uhr.base.errors import UserError
from uhr.models import registry
from uhr.models.hr_toolkit import Native
from uhr.models.spec import ModelSpec


def spec_of(pipeline: Any, native_size: int | None = None) -> ModelSpec | None:
    """The spec of a sampler's backbone; None for one that no spec describes, where `native_size` is given in
    its place."""
    stock = next(cls for cls in type(pipeline).__mro__ if cls.__module__.startswith("diffusers."))
    try:
        index = {**pipeline.config, "_class_name": stock.__name__}
        return registry.match(index, pipeline.transformer.config, "this backbone")
    except UserError as error:
        if native_size is None:
            fix = "give native_size, the side in px of its training square"
            raise UserError(error.what, fix) from None
        return None


def native_of(pipeline: Any, native_size: int | None = None) -> Native:
    """Its training grid; `native_size` (side in px) goes before what the spec says."""
    spec = spec_of(pipeline, native_size)
    if native_size is None:
        assert spec is not None
        native_size = spec.native_size
    text = pipeline.backbone.text_length(pipeline.transformer)
    return Native(native_size // pipeline.pixel_multiple, text)
