"""The samplers by name. A new one is a file here and a line in `SAMPLERS`; a user's own goes by import
path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uhr.base.errors import load_object, unknown


@dataclass(frozen=True)
class SamplerInfo:
    """A sampler before its code is imported: where its pipeline class is, and what it needs."""

    path: str
    summary: str
    weights: str


SAMPLERS: Mapping[str, SamplerInfo] = {
    "euler": SamplerInfo(
        "uhr.models.samplers.euler:EulerPipeline",
        "plain Euler steps, as FLUX was published",
        "any FLUX.1 checkpoint; takes any FLUX LoRA",
    ),
}


def check_name(name: str) -> None:
    """UserError with the nearest names, unless it is a sampler's name or an import path."""
    if name not in SAMPLERS and ":" not in name:
        raise unknown("sampler", name, SAMPLERS)


def sampler_class(name: str) -> Any:
    """The pipeline class of a sampler, by name or by import path `package.module:Class`."""
    check_name(name)
    return load_object(SAMPLERS[name].path if name in SAMPLERS else name, "sampler")
