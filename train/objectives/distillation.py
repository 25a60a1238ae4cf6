"""Distillation from the model before training, and GCA's reverse distillation of its guidance."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from uhr.base.errors import UserError
from uhr.train.objectives.base import Batch, Denoiser, Errors, Objective, joined

if TYPE_CHECKING:
    from uhr.models.specs.spec import ModelSpec
    from uhr.train.objectives.draws import Draws


class Distillation(Objective):
    """|| v(x_sigma, sigma, c) - v_teacher(x_sigma, sigma, c) ||^2 (URAE 2503.16322, eq. 2).

    The teacher is the model before training. With this objective a data set keeps the model where it is:
    beside another objective it is a preservation set. The data give only x_sigma and the prompt.
    """

    uses_teacher: ClassVar[bool] = True

    kind: str = "distillation"

    def __call__(self, denoiser: Denoiser, batch: Batch, draws: Draws) -> Errors:
        noisy = batch.noisy
        target = denoiser.teacher(noisy, batch.sigma, batch.condition).float()
        predicted = denoiser.velocity(noisy, batch.sigma, batch.condition).float()
        return Errors((predicted - target).square())


class ReverseDistillation(Objective):
    """Stage 1 of Guidance-Consistent Adaptation (RealUHR): recover the unguided field of a model into which
    guidance was distilled.

        U = (1 + g) v(x_sigma, sigma, c) - g v(x_sigma, sigma, null)
        || U - v_teacher(x_sigma, sigma, c; guidance input 1 + g) ||^2,  g ~ U(g_min, g_max) per sample

    Gradients flow through both passes, which run as one batch of 2B. The trained model gets the guidance
    input `embedded` in both. The data give only x_sigma and the prompt. The paper gives no distribution of g;
    g must vary, since for one value only one combination of the two fields is determined.

    g_min, g_max: range of g in the convention of Ho and Salimans (0 is the conditional field alone), which is
        the model's guidance input minus 1.
    embedded: guidance input of the trained model.
    even: divide the error by 1 + 2 g, so that samples of a large g do not dominate (not in the paper).
    """

    uses_teacher: ClassVar[bool] = True
    passes: ClassVar[int] = 2

    kind: str = "reverse-distillation"
    g_min: float = Field(0.0, ge=0)
    g_max: float = Field(4.0, gt=0)
    embedded: float = 1.0
    even: bool = False

    @model_validator(mode="after")
    def _a_range(self) -> ReverseDistillation:
        if self.g_min >= self.g_max:
            raise ValueError("g must vary: g_min must be less than g_max")
        return self

    def check(self, spec: ModelSpec, guidance: float | None) -> None:
        if spec.guidance != "embedded":
            what = f"reverse distillation recovers the field of a guidance-distilled model, and {spec.name}"
            raise UserError(
                f"{what} has no guidance input",
                "train it by flow matching, as gca-stage2 does with --set init.after=null",
            )
        if guidance != self.embedded:
            what = f"the recipe trains at guidance {guidance}, and reverse distillation at {self.embedded}"
            raise UserError(what, "set guidance.scale and objective.embedded to one value")

    def __call__(self, denoiser: Denoiser, batch: Batch, draws: Draws) -> Errors:
        import torch

        g = self.g_min + (self.g_max - self.g_min) * draws.uniform("guidance").to(batch.sigma)
        noisy, sigma = batch.noisy, batch.sigma
        target = denoiser.teacher(noisy, sigma, batch.condition.with_guidance(1 + g)).float()
        conditional = batch.condition.with_guidance(self.embedded)
        both = denoiser.velocity(
            torch.cat([noisy, noisy]), torch.cat([sigma, sigma]), joined([conditional, conditional.null()])
        )
        v_text, v_null = both.float().chunk(2)
        factor = g.view(-1, 1, 1, 1)
        error = ((1 + factor) * v_text - factor * v_null - target).square()
        return Errors(error, 1 / (1 + 2 * g) if self.even else None, {"g": g})
