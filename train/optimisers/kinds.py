"""The optimisers that recipes name, and any optimiser for torch by its import path."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import pydantic
from pydantic import Field

from uhr.base.errors import UserError, one_line, unknown
from uhr.models.files.containers import check_installed
from uhr.train.optimisers.base import Optimiser

if TYPE_CHECKING:
    import torch


class AdamW(Optimiser):
    """AdamW (Loshchilov and Hutter 1711.05101) of torch."""

    divisible: ClassVar[bool] = True

    kind: str = "adamw"
    betas: tuple[float, float]
    eps: float = Field(gt=0)
    weight_decay: float = Field(ge=0)

    def build(self, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
        import torch

        return torch.optim.AdamW(
            list(parameters), lr=0.0, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay
        )

    def state_bytes(self) -> float:
        # both moments in float32; a plan needs no torch to know it
        return 8.0


class AdamW8bit(AdamW):
    """AdamW with 8-bit moments (Dettmers et al. 2110.02861) of bitsandbytes, on a GPU or a CPU.

    A parameter of fewer than 4,096 elements keeps its moments in float32.
    """

    # its blocks of moments have no places in a divided parameter
    divisible: ClassVar[bool] = False

    kind: str = "adamw-8bit"

    def build(self, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
        check_installed("bitsandbytes", "optimiser 'adamw-8bit'")
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(
            list(parameters), lr=0.0, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay
        )

    def state_bytes(self) -> float:
        # 8 bits for each moment, and a float32 scale for each 256 elements
        return 2 * (1 + 4 / 256)


class Prodigy(Optimiser):
    """Prodigy (Mishchenko and Defazio 2306.06101): it finds the learning rate, and the phase's is its factor
    (1.0 in the paper and in URAE). See `train/optimisers/prodigy.py`.

    weight_decay: decoupled, as AdamW's. bias_correction: Adam's. safeguard_warmup: leave the learning rate
    out of the denominator of the estimate, so that a warm-up does not enlarge it.
    d0: the first estimate. d_coef: factor of the estimate.
    """

    divisible: ClassVar[bool] = True

    kind: str = "prodigy"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    bias_correction: bool = True
    safeguard_warmup: bool = True
    d0: float = Field(1e-6, gt=0)
    d_coef: float = Field(1.0, gt=0)

    def build(self, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
        from uhr.train.optimisers import prodigy

        return prodigy.Prodigy(list(parameters), lr=0.0, **self.model_dump(exclude={"kind"}))

    def state_bytes(self) -> float:
        # both moments, the initial value, and the running sum of the estimate
        return 16.0

    def log_values(self, optimiser: torch.optim.Optimizer) -> dict[str, float]:
        return {"d": optimiser.param_groups[0]["d"]}


class TorchOptimiser(Optimiser):
    """Any class derived from `torch.optim.Optimizer`, by its import path; the other keys are its keyword
    arguments.
    """

    model_config = pydantic.ConfigDict(extra="allow")

    @classmethod
    def of(cls, found: Any, value: Mapping[str, Any] | str) -> TorchOptimiser:
        """The settings in `value` of an imported class. Raises UserError for what it does not take."""
        import torch

        tree = {"kind": value} if isinstance(value, str) else dict(value)
        where = f"optimiser '{tree['kind']}'"
        if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
            raise UserError(f"{where} is not one", "name a class derived from torch.optim.Optimizer")
        if inspect.signature(found.step).parameters["closure"].default is inspect.Parameter.empty:
            raise UserError(f"{where} computes the loss several times in a step", "take another")
        known = inspect.signature(found.__init__).parameters
        open_ended = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in known.values())
        for name in tree:
            if name in ("lr", "params"):
                raise UserError(f"{where}: '{name}' is set by the loop", "set the phase's lr")
            if name != "kind" and name not in known and not open_ended:
                raise unknown("key", name, [*known][2:], where)
        return cls.model_validate(tree)

    def build(self, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
        from uhr.base.errors import load_object

        arguments = {
            # JSON has no tuples
            name: tuple(value) if isinstance(value, list) else value
            for name, value in (self.model_extra or {}).items()
        }
        cls = load_object(self.kind, "optimiser")
        try:
            # some classes refuse a learning rate of 0; the loop sets another before each step
            return cls(list(parameters), lr=1e-3, **arguments)
        except (AssertionError, TypeError, ValueError) as error:
            what = f"optimiser '{self.kind}' cannot be made ({one_line(error)})"
            raise UserError(what, "change its keys under `optimiser`") from error
