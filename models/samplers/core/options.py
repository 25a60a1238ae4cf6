"""Options that several samplers share: what `uhr sample --set` sets, and keyword arguments of a call.

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
    native_size:    side in px of the backbone's training square; None is what its spec says
    """

    true_cfg_scale: float = 1.0
    native_size: int | None = Field(default=None, gt=0)


class StagedOptions(SamplerOptions):
    """guidance_high:   of the stages above the base; None is the sampler's published number where the
                     backbone embeds guidance, and the call's own elsewhere, as in a call with an image
                     that names one
    shift:           of those stages, static or native; None is static on FLUX.1, native on FLUX.2
    shift_factor:    of the static shift
    """

    guidance_high: float | None = None
    shift: StageShift | None = None
    shift_factor: float = Field(default=3.0, gt=0)


class DenseOptions(StagedOptions):
    """toolkit: what lets the backbone work above its native size (`samplers/core/toolkit.py`)"""

    toolkit: Toolkit = Toolkit()


def _floats(levels: Any) -> Any:
    """Floats of any sequence, an array's or a tensor's too; pydantic refuses what is not a sequence."""
    return tuple(float(each) for each in levels) if isinstance(levels, Iterable) else levels


Levels = Annotated[tuple[float, ...], BeforeValidator(_floats)]

PerStage = tuple[float, ...]
"""One value for each stage above the base; the last one serves all that follow."""


def pick(values: PerStage, index: int) -> float:
    """The value of the index-th stage above the base."""
    return values[min(index, len(values) - 1)]
