"""The base pass, with which most samplers begin."""

from __future__ import annotations

from collections.abc import Callable

import torch

from uhr.models.ops import flow
from uhr.models.samplers.core.conditioning import Conditions
from uhr.models.samplers.core.engine import Engine
from uhr.models.samplers.core.plan import SamplingStage


def base_pass(
    engine: Engine,
    stage: SamplingStage,
    keep: Callable[[torch.Tensor], None] | None = None,
    alone: str | None = None,
    prompts: Conditions | None = None,
) -> torch.Tensor:
    """Run a stage from pure noise along the guided velocity; return its last z.

    Args:
        keep: called with the clean estimate of each step.
        alone: as in `Engine.network`.
        prompts: replace the call's prompts.
    """
    with engine.network(stage, alone=alone) as velocity:

        def follow(z: torch.Tensor, sigma: float, step: int, conditions: Conditions) -> torch.Tensor:
            v = velocity(z, sigma, step, conditions)
            if keep is not None:
                keep(flow.data_estimate(z, v, sigma))
            return v

        return engine.integrate(stage, engine.draw_noise(stage), follow, engine.conditions(stage, prompts))
