"""URAE at 2K (2503.16322): an ordinary LoRA on images that a stronger model generated."""

from __future__ import annotations

from uhr.train.objectives.flow import Flow
from uhr.train.optimisers.kinds import Prodigy
from uhr.train.recipes.core.base import Batching, DataUse, Guidance, Phase, Recipe
from uhr.train.recipes.core.runtime import Sampling
from uhr.train.recipes.core.shared import RUNTIME, sources
from uhr.train.timesteps import Timesteps
from uhr.train.trainable.adapters import Lora

RECIPE = Recipe(
    name="urae-2k",
    about="native 2K by a LoRA on synthetic images (URAE)",
    family="flux1",
    guidance=Guidance(kind="embedded", scale=1.0),
    trainable=Lora(rank=16, alpha=16, targets="attention"),
    phases=(
        Phase(
            name="main",
            data=(DataUse(data="synthetic"),),
            resolution=2048,
            objective=Flow(),
            timesteps=Timesteps(density="uniform", shift=1.0),
            steps=2000,
            lr=1.0,
            warmup=0,
        ),
    ),
    optimiser=Prodigy(
        betas=(0.9, 0.999), weight_decay=1e-4, bias_correction=True, safeguard_warmup=True, d0=1e-6
    ),
    clip=1.0,
    batch=Batching(size=8, micro=1, remainder="short"),
    latents="sample",
    captions={"caption": 0.2, "caption_en": 0.8},
    caption_dropout=0.0,
    seed=0,
    sampling=Sampling(options={"toolkit.ntk": 10.0}),
    runtime=RUNTIME,
    sources=sources(
        family="URAE: FLUX.1-dev",
        guidance="URAE 2503.16322, section 2.4, and its code: 1.0, the unguided point",
        trainable="URAE, official code: the major components are an ordinary LoRA",
        phases__data="URAE: 3,000 images of FLUX1.1 [pro] Ultra in many ratios",
        phases__resolution="URAE",
        phases__objective="URAE, official code: flow matching on the data",
        phases__timesteps="URAE, official code: uniform over the scheduler's table of unshifted levels",
        phases__steps="URAE, official code",
        phases__lr="URAE, official code: Prodigy with factor 1",
        phases__schedule="URAE, official code",
        phases__warmup="URAE, official code",
        optimiser="URAE, official code; eps, d0 and d_coef are Prodigy's defaults",
        clip="URAE, official code",
        batch__size="URAE, official code: 8 GPUs with one image each",
        captions="URAE, official code: 20 % original, 80 % generated; the columns' names are ours",
        latents="URAE, official code: mean and standard deviation are stored, and drawn from at each visit",
        runtime="ours; trained values are float32: in the code's bfloat16 Prodigy stalls",
        surgeries="URAE, official code: NTK factor 1 in training, although it samples with 10",
        proportional="URAE, official code: off in training, although it samples with it",
    ),
)
