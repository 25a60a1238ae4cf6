"""Prodigy (Mishchenko and Defazio, 2306.06101, algorithm 4: the version of Adam) as a torch optimiser.

With gamma the learning rate, g the gradient, x0 the values at the start, d the estimate of the distance to
the solution, and the sums r and s over all parameters of all groups:

    m <- beta1 m + (1 - beta1) d g                    v <- beta2 v + (1 - beta2) d^2 g^2
    r <- beta3 r + (1 - beta3) gamma d^2 <g, x0 - x>  s <- beta3 s + (1 - beta3) gamma d^2 g
    d' = max(d, d_coef r / |s|_1)                     x <- x - gamma d (m / (sqrt(v) + d eps) + decay x)

beta3 = sqrt(beta2). After that d' is d. As in the authors' code, which the options are from: decoupled weight
decay; with `bias_correction` gamma is multiplied by sqrt(1 - beta2^(k+1)) / (1 - beta1^(k+1)) in step k; with
`safeguard_warmup` s has no gamma. The factor 1 - beta3 cancels in r / |s|_1; it is kept, as in the paper. The
authors' code has d' in d eps, the paper d; this follows the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch


class Prodigy(torch.optim.Optimizer):
    """See the module. `d`, `r` and the number of steps `k` are in every group and the same in all."""

    def __init__(
        self,
        params: Sequence[Any],
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        bias_correction: bool = True,
        safeguard_warmup: bool = True,
        d0: float = 1e-6,
        d_coef: float = 1.0,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "d_coef": d_coef}
        switches = {"bias_correction": bias_correction, "safeguard_warmup": safeguard_warmup}
        super().__init__(params, {**settings, **switches, "d": d0, "r": 0.0, "k": 0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Do one step. All groups must have the same learning rate, as one `d` is estimated of all."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        first = self.param_groups[0]
        d, k = first["d"], first["k"]
        rates = [_rate(group) for group in self.param_groups]
        beta3 = math.sqrt(first["betas"][1])
        dots, norms = [], []
        for group, rate in zip(self.param_groups, rates, strict=True):
            in_s = 1.0 if group["safeguard_warmup"] else rate
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self._state(parameter)
                gradient = parameter.grad.float()
                dots.append(rate * torch.sum(gradient * (state["x0"] - parameter)).double())
                state["s"].mul_(beta3).add_(gradient, alpha=(1 - beta3) * in_s * d**2)
                norms.append(state["s"].abs().sum().double())
                beta1, beta2 = group["betas"]
                state["m"].mul_(beta1).add_(gradient, alpha=(1 - beta1) * d)
                state["v"].mul_(beta2).addcmul_(gradient, gradient, value=(1 - beta2) * d**2)
        if not dots:
            return loss
        # one transfer from the device for both sums
        sums = torch.stack([_whole(torch.stack(dots).sum()), _whole(torch.stack(norms).sum())]).tolist()
        r = beta3 * first["r"] + (1 - beta3) * d**2 * sums[0]
        after = max(d, first["d_coef"] * r / sums[1]) if sums[1] > 0 else d
        for group, rate in zip(self.param_groups, rates, strict=True):
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                change = state["m"] / (state["v"].sqrt() + d * group["eps"])
                parameter.mul_(1 - rate * d * group["weight_decay"]).add_(change, alpha=-rate * d)
            group.update(d=after, r=r, k=k + 1)
        return loss

    def _state(self, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
        """The float32 state of a parameter; made at its first gradient."""
        state = self.state[parameter]
        if not state:
            state["x0"] = parameter.detach().float().clone()
            for name in ("m", "v", "s"):
                state[name] = torch.zeros_like(state["x0"])
        return state


def _whole(total: torch.Tensor) -> torch.Tensor:
    """A sum over parameters that may be divided among processes, in each of them."""
    from torch.distributed.tensor import DTensor

    return total.full_tensor() if isinstance(total, DTensor) else total


def _rate(group: dict[str, Any]) -> float:
    """gamma of a group's step, with the correction of Adam's bias."""
    if not group["bias_correction"]:
        return group["lr"]
    (beta1, beta2), steps = group["betas"], group["k"] + 1
    return group["lr"] * math.sqrt(1 - beta2**steps) / (1 - beta1**steps)
