"""Options that several samplers share, set by `uhr sample --set` or as keyword arguments of a call.

Importing this, or any sampler's options, does not import torch, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from uhr.base.config import Config
from uhr.models.ops.choices import StageShift
from uhr.models.samplers.core.toolkit import Toolkit


class SamplerOptions(Config):
    """Options of every sampler.

    true_cfg_scale: above 1 it needs a negative prompt and doubles the model calls:
                    v = v_negative + scale * (v_prompt - v_negative)
    native_size:    side in px of the backbone's training square with a VAE of factor 8; None takes the
                    size of its spec
    """

    true_cfg_scale: float = 1.0
    native_size: int | None = Field(default=None, gt=0)


class StagedOptions(SamplerOptions):
    """Options of samplers with stages.

    guidance_high:   guidance of the stages above the base. None is the sampler's published number if the
                     backbone embeds guidance, and the guidance of the call otherwise, or if a call with an
                     image gives one
    shift:           shift of those stages, static or native; None is static on FLUX.1, native on FLUX.2
    shift_factor:    factor of the static shift
    """

    guidance_high: float | None = None
    shift: StageShift | None = None
    shift_factor: float = Field(default=3.0, gt=0)


class DenseOptions(StagedOptions):
    """Options of samplers whose calls cover the whole image.

    toolkit: changes of the backbone for sizes above the native one (`samplers/core/toolkit.py`)
    """

    toolkit: Toolkit = Toolkit()


def _floats(levels: Any) -> Any:
    """The floats of any sequence, including arrays and tensors; pydantic rejects other values."""
    return tuple(float(each) for each in levels) if isinstance(levels, Iterable) else levels


Levels = Annotated[tuple[float, ...], BeforeValidator(_floats)]

PerStage = tuple[float, ...]
"""One value for each stage above the base; the last one applies to all further stages."""


def pick(values: PerStage, index: int) -> float:
    """Return the value for the index-th stage above the base."""
    return values[min(index, len(values) - 1)]
