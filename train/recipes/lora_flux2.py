"""Plain LoRA by flow matching on FLUX.2 [klein] base, which is not distilled: `lora` with its guidance."""

from __future__ import annotations

from uhr.train.recipes.core.base import Guidance
from uhr.train.recipes.core.shared import derived
from uhr.train.recipes.lora import RECIPE as LORA

RECIPE = derived(
    LORA,
    {
        "family": "ours: the geometry of FLUX.2's adapters",
        "guidance": "none: klein base has no guidance input, and is guided by two passes",
        "phases.timesteps.shift": "ours: that of FLUX.1; FLUX.2's own shift depends on size and steps",
        "trainable.targets": "URAE's choice for FLUX.1, in FLUX.2's layers: q, k, v and out of the image",
    },
    name="lora-flux2",
    about="plain LoRA by flow matching on FLUX.2 [klein] base",
    family="flux2",
    guidance=Guidance(kind="cfg"),
)
