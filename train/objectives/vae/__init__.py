"""Objectives of a VAE: losses between images and their reconstructions.

A new objective is a class derived from `base.VaeObjective`, and a line in `NAMES`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uhr.base.kinds import by_kind
from uhr.train.objectives.vae.base import VaeObjective

NAMES = {"reconstruction": "uhr.train.objectives.vae.reconstruction:ReconstructionLoss"}
"""The objectives by kind; any other is named by its import path, such as `mypkg.objectives:Mine`."""

if TYPE_CHECKING:
    AnyVaeObjective = VaeObjective
else:
    AnyVaeObjective: Any = by_kind(VaeObjective, NAMES, "VAE objective")
