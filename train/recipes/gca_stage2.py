"""RealUHR's Guidance-Consistent Adaptation, stage 2: flow matching on patches and whole images, without
guidance.

The paper gives the loss and the data; the other numbers are ours.
"""

from __future__ import annotations

from uhr.train.objectives.flow import Flow
from uhr.train.optimisers.kinds import AdamW
from uhr.train.recipes.core.base import Batching, DataUse, Guidance, Init, Phase, Recipe, Sampling
from uhr.train.recipes.core.shared import RUNTIME, sources
from uhr.train.timesteps import Timesteps
from uhr.train.trainable.adapters import Lora

RECIPE = Recipe(
    name="gca-stage2",
    about="patches and whole images by flow matching, after gca-stage1: for patch-cascade (RealUHR)",
    family="flux1",
    guidance=Guidance(kind="embedded", scale=1.0),
    trainable=Lora(rank=64, alpha=64, targets="all-linear"),
    init=Init(use="continue", after="gca-stage1"),
    phases=(
        Phase(
            name="main",
            data=(DataUse(data="patches", weight=8), DataUse(data="images", weight=7)),
            objective=Flow(),
            timesteps=Timesteps(density="logit_normal", mean=0.0, std=1.0, shift=1.0),
            steps=5000,
            lr=1e-4,
            warmup=0,
        ),
    ),
    optimiser=AdamW(betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-4),
    clip=1.0,
    batch=Batching(size=16, micro=1, remainder="short"),
    latents="sample",
    caption_dropout=0.1,
    seed=0,
    sampling=Sampling(sampler="patch-cascade", guidance=1.0),
    runtime=RUNTIME,
    sources=sources(
        family="RealUHR: FLUX.1-dev",
        guidance="as stage 1: the constant input at which the field is unguided",
        trainable="as stage 1, whose adapter is trained further",
        init="RealUHR: stage 2 adapts the model of stage 1; --set init.after=null is its ablation",
        phases__data="RealUHR: about 80,000 filtered patches and 70,000 whole images",
        phases__objective="RealUHR: conditional flow matching",
        phases__timesteps="ours: logit-normal(0, 1), Esser et al. 2403.03206; the paper gives no density",
        phases__steps="ours: the paper gives none",
        phases__lr="ours: diffusers' LoRA default",
        optimiser="ours: diffusers' defaults",
        clip="ours: diffusers' default",
        batch__size="ours: the paper gives none",
        caption_dropout="ours: keeps the field of the empty prompt, which guidance by two passes reads",
    ),
)
