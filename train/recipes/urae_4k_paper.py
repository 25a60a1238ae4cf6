"""URAE at 4K as its paper says (2503.16322): minor components of the base model, 2,000 steps."""

from __future__ import annotations

from uhr.train.recipes.core.base import Init
from uhr.train.recipes.core.shared import changed, derived
from uhr.train.recipes.urae_4k_code import PHASE
from uhr.train.recipes.urae_4k_code import RECIPE as CODE

RECIPE = derived(
    CODE,
    {
        "phases.data": "URAE, paper: 30,000 images of LAION-5B of 4K or more",
        "phases.steps": "URAE, paper",
        "init": "URAE, paper: begins with the base model; the code with its 2K adapter",
    },
    name="urae-4k@paper",
    about="native 4K by minor components of FLUX.1-dev, as the paper says (URAE)",
    init=Init(),
    phases=(changed(PHASE, steps=2000),),
)
