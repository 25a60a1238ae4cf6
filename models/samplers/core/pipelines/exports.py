"""Export the pipelines of a sampler as names of its module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uhr.models.samplers.core.sampler import Sampler, pipeline_name
from uhr.models.specs.registry import FAMILY_SPECS


def pipelines_of(sampler: type[Sampler]) -> Callable[[str], Any]:
    """Return a module's `__getattr__` that makes its pipelines importable. diffusers, which takes seconds to
    import, is imported only with the first pipeline."""
    names = {pipeline_name(sampler, family): family for family in FAMILY_SPECS}

    def attribute(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {sampler.__module__!r} has no attribute {name!r}")
        from uhr.models.samplers.core.pipelines.families import pipeline_class

        return pipeline_class(sampler, names[name])

    return attribute
