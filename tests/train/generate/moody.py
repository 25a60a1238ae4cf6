"""A sampler for the tests of sets: Euler, which does what a prompt says. Workers import it from outside."""

from __future__ import annotations

import time
from typing import Any

from uhr.base.errors import UserError
from uhr.models.samplers.euler import EulerPipeline


class Moody(EulerPipeline):
    """`refuse`: a UserError; `slow`: takes a while longer."""

    def __call__(self, prompt: Any = None, **rest: Any) -> Any:
        if "refuse" in prompt:
            raise UserError("no such image", "ask for another")
        if "slow" in prompt:
            time.sleep(0.4)
        return super().__call__(prompt=prompt, **rest)
