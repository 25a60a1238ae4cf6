"""UltraFlux, stage 2 (CVPR 2026): high noise on the most aesthetic twentieth of the data."""

from __future__ import annotations

from uhr.train.recipes.core.base import DataUse, Init
from uhr.train.recipes.core.shared import changed, derived
from uhr.train.recipes.ultraflux_stage1 import PHASE as PHASE1
from uhr.train.recipes.ultraflux_stage1 import RECIPE as STAGE1

PHASE = changed(
    PHASE1,
    name="stage2",
    data=(DataUse(where="artimuse_rank < 0.05"),),
    timesteps=PHASE1.timesteps.with_band((0.54, 1.0)),
    steps=2000,
)

RECIPE = derived(
    STAGE1,
    {
        "phases.data": "UltraFlux: the top 5 % by ArtiMuse; the column of ranks is that of curation",
        "phases.timesteps.band": "UltraFlux: indices 0 to 459 of the table, sigma 0.541 to 1 unshifted",
        "init": "UltraFlux: stage 2 follows stage 1",
    },
    name="ultraflux-stage2",
    about="high noise on the top 5 % by ArtiMuse, after ultraflux-stage1 (UltraFlux)",
    init=Init(use="continue", after="ultraflux-stage1"),
    phases=(PHASE,),
)
