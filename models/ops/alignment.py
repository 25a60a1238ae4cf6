"""HiFlow's alignments of a high-resolution path with a reference path of lower resolution.

All formulas are in clean estimates (x - sigma v), which avoids 1/sigma; tensors are [..., H, W], sigma is in
[0, 1] with 1 noise, velocity = noise - data. The paper's X_0 is data and its t is sigma.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

LowPass = Callable[[torch.Tensor], torch.Tensor]


def align_direction(
    data: torch.Tensor, reference: torch.Tensor, weight: float, low_pass: LowPass
) -> torch.Tensor:
    """Move the estimate's low frequencies to the reference's (eq. 8): X + alpha (LP(R) - LP(X))."""
    return data + weight * low_pass(reference - data)


class Acceleration:
    """Makes the estimate change from step to step as the reference does (eq. 13); one object per stage.

    In velocities v~_i = v_i + beta (v~_(i-1) + ref_i - ref_(i-1) - v_i), ref_i = (x_i - R_i) / sigma_i, and
    nothing at the first step. In estimates, where it is computed, with q = sigma_i / sigma_(i-1):
    O_i = D_i - beta ((D_i - R_i) - q (O_(i-1) - R_(i-1))).
    """

    def __init__(self) -> None:
        self._off: torch.Tensor | None = None
        self._sigma = 1.0

    def align(self, data: torch.Tensor, reference: torch.Tensor, sigma: float, weight: float) -> torch.Tensor:
        """Return O_i for D_i = `data` (after `align_direction`) and R_i = `reference`; `weight` is beta, in
        [0, 1]."""
        assert sigma > 0, sigma
        off = data - reference
        if self._off is not None:
            off = off - weight * (off - sigma / self._sigma * self._off)
        self._off, self._sigma = off, sigma
        return reference + off
