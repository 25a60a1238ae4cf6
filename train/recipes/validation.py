"""What a run measures and shows while it trains. Nothing here changes a number of the training."""

from __future__ import annotations

from pydantic import Field

from uhr.base.config import Config


class HeldOutLoss(Config):
    """The loss of images that are not trained on, on fixed noise, for each of several ranges of sigma.

    It is the objective of the current phase without its weights, with the images' first captions and the mean
    latents: its values differ only by what was learned.

    data: name of the data set, as in `--data NAME=DIR`. where: SQL condition on curated columns, such as
        `split = 'validation'`; None is all rows. every: steps between two measurements.
    resolution: px, as the data was encoded; None is that of the phase.
    rows: the most images, evenly spread over those of the data set.
    bins: number of equal ranges of sigma in [0, 1]; an image has one sigma in each.
    """

    data: str = "main"
    where: str | None = None
    every: int = Field(gt=0)
    resolution: int | None = Field(None, gt=0)
    rows: int = Field(32, gt=0)
    bins: int = Field(4, gt=0)


class Validation(Config):
    """loss: held-out loss, in the log and in the metrics of checkpoints; None measures nothing."""

    loss: HeldOutLoss | None = None
