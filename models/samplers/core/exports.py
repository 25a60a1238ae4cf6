"""The pipelines of a sampler as names of its module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uhr.models.samplers.core.sampler import FAMILIES, Sampler, pipeline_name


def pipelines_of(sampler: type[Sampler]) -> Callable[[str], Any]:
    """A module's `__getattr__` by which its pipelines can be imported, without diffusers, which takes seconds
    to import, before one is."""
    names = {pipeline_name(sampler, family): family for family in FAMILIES}

    def attribute(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {sampler.__module__!r} has no attribute {name!r}")
        from uhr.models.samplers.core.family_pipelines import pipeline_class

        return pipeline_class(sampler, names[name])

    return attribute
