"""RealUHR's Guidance-Consistent Adaptation, stage 2: flow matching on patches and whole images, without
guidance.

The paper gives the loss and the data; the other numbers are ours.
"""

from __future__ import annotations

from uhr.train.objectives.flow import Flow
from uhr.train.recipes.core.base import DataUse, Init
from uhr.train.recipes.core.shared import changed, derived
from uhr.train.recipes.gca_stage1 import RECIPE as STAGE1

RECIPE = derived(
    STAGE1,
    {
        "guidance": "as stage 1: the constant input at which the field is unguided",
        "trainable": "as stage 1, whose adapter is trained further",
        "init": "RealUHR: stage 2 adapts the model of stage 1; --set init.after=null leaves stage 1 out",
        "phases.data": "RealUHR: about 80,000 filtered patches and 70,000 whole images",
        "phases.objective": "RealUHR: conditional flow matching",
        "caption_dropout": "ours: keeps the field of the empty prompt, which guidance by two passes reads",
    },
    name="gca-stage2",
    about="patches and whole images by flow matching, after gca-stage1: for patch-cascade (RealUHR)",
    init=Init(use="continue", after="gca-stage1"),
    phases=(
        changed(
            STAGE1.phases[0],
            data=(DataUse(data="patches", weight=8), DataUse(data="images", weight=7)),
            objective=Flow(),
            steps=5000,
        ),
    ),
    caption_dropout=0.1,
)
