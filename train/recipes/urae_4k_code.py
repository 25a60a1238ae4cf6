"""URAE at 4K as its code does it: minor components on top of the 2K adapter, 10,000 steps."""

from __future__ import annotations

from uhr.train.recipes.core.base import DataUse, Init
from uhr.train.recipes.core.shared import changed, derived
from uhr.train.recipes.urae_2k import RECIPE as URAE_2K
from uhr.train.trainable.adapters import Components

PHASE = changed(URAE_2K.phases[0], data=(DataUse(data="real"),), resolution=4096, steps=10000)

RECIPE = derived(
    URAE_2K,
    {
        "trainable": "URAE, section 2.3 and official code: the smallest components, on noisy real images",
        "phases.data": "URAE, README: about 16,000 images of LAION-5B of 4K or more",
        "phases.steps": "URAE, official code; the paper has 2,000",
        "surgeries": "URAE, official code: NTK factor 10 on all axes",
        "proportional": "URAE, official code: on in training and sampling",
        "init": "URAE, official code: the 2K adapter is fused before the weights are decomposed",
    },
    name="urae-4k@code",
    about="native 4K by minor components on top of urae-2k, as the code does it (URAE)",
    surgeries=({"surgery": "rope-ntk", "factor": 10.0, "floor": None},),
    proportional=True,
    trainable=Components(rank=16, targets="attention", components="minor"),
    init=Init(use="fuse", after="urae-2k"),
    phases=(PHASE,),
)
