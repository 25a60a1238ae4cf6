"""What a run measures and shows while it trains. Nothing here changes a number of the training."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from uhr.base.config import Config


class MeasuredRows(Config):
    """Images of a data set that are measured or shown during a run.

    data: name of the data set, as in `--data NAME=DIR`. where: SQL condition on curated columns, such as
        `split = 'validation'`; None is all rows. every: steps between two measurements; the first is before
        training, and the last after the last step.
    resolution: px, as the data was encoded; None is that of the phase.
    rows: the most images, evenly spread over those of the data set.
    """

    data: str = "main"
    where: str | None = None
    every: int = Field(gt=0)
    resolution: int | None = Field(None, gt=0)
    rows: int = Field(32, gt=0)


class HeldOutLoss(MeasuredRows):
    """The loss of images that are not trained on, on fixed noise, for each of several ranges of sigma.

    It is the objective of the phases without its weights, with the images' first captions and the mean
    latents: its values differ only by what was learned. Where phases have different objectives or
    resolutions, the loss of each is measured throughout, and has its phase's name.

    bins: number of equal ranges of sigma in [0, 1]; an image has one sigma in each.
    """

    bins: int = Field(4, gt=0)


class ValidationImages(Config):
    """Images that the model generates as it is during the run, as PNG files in `validation/` of the run.

    They are those of `uhr sample` with what is exported then: the sampler sets positions and attention.
    Prompts are encoded before the training starts. `grid.png` shows all of them, beside those of the same
    noise without the adapter.

    prompts: an image each. every: steps between two sets of images; the first is before training, and the
        last after the last step.
    sampler: its name, and its `options`. size (width and height in px), steps, guidance: None is the
        sampler's own.
    seed: of the noise of the first image; each other has the next number.
    """

    prompts: tuple[str, ...] = Field(min_length=1)
    every: int = Field(gt=0)
    sampler: str = "euler"
    options: dict[str, Any] = Field(default_factory=dict)
    size: tuple[int, int] | None = None
    steps: int | None = Field(None, gt=0)
    guidance: float | None = None
    seed: int = Field(0, ge=0)


class ValidationBase(Config):
    """What a run measures and shows while it trains."""

    loss: MeasuredRows | None = None
    images: MeasuredRows | ValidationImages | None = None

    @property
    def measured(self) -> list[MeasuredRows]:
        """The rows of data sets that it reads."""
        return [each for each in (self.loss, self.images) if isinstance(each, MeasuredRows)]


class Validation(ValidationBase):
    """loss: held-out loss, in the log and in the metrics of checkpoints; None measures nothing.
    images: generated images; None generates none.
    """

    loss: HeldOutLoss | None = None
    images: ValidationImages | None = None
