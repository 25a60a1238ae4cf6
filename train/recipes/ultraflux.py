"""UltraFlux (CVPR 2026): both stages of its curriculum in one run."""

from __future__ import annotations

from uhr.train.recipes.core.shared import derived
from uhr.train.recipes.ultraflux_stage1 import PHASE as PHASE1
from uhr.train.recipes.ultraflux_stage1 import RECIPE as STAGE1
from uhr.train.recipes.ultraflux_stage2 import PHASE as PHASE2

RECIPE = derived(
    STAGE1,
    {
        "phases.data": "UltraFlux: all of MultiAspect-4K-1M, then its top 5 % by ArtiMuse",
        "phases.timesteps.band": "UltraFlux: in stage 2 indices 0 to 459, sigma 0.541 to 1 unshifted",
    },
    name="ultraflux",
    about="native 4K with an F16 VAE: ultraflux-stage1, then ultraflux-stage2, in one run (UltraFlux)",
    phases=(PHASE1, PHASE2),
)
