"""UltraGen (2510.16325): a LoRA that lets windows of attention read a guide at a quarter of the side."""

from __future__ import annotations

from uhr.train.objectives.flow import Flow
from uhr.train.optimisers.kinds import Prodigy
from uhr.train.recipes.core.base import Batching, Guidance, Phase, Recipe
from uhr.train.recipes.core.runtime import Sampling
from uhr.train.recipes.core.shared import RUNTIME, sources
from uhr.train.recipes.core.windows import GuideWindows
from uhr.train.timesteps import Timesteps
from uhr.train.trainable.adapters import GuideLora

RECIPE = Recipe(
    name="ultragen",
    about="a LoRA on guide tokens for windowed attention: for sampler ultragen (UltraGen)",
    family="flux1",
    surgeries=({"surgery": "rope-ntk", "factor": 10.0, "floor": None},),
    guidance=Guidance(kind="embedded", scale=1.0),
    trainable=GuideLora(rank=16, alpha=16, targets="qkv"),
    windows=GuideWindows(ratio=4),
    phases=(
        Phase(
            name="main",
            objective=Flow(),
            timesteps=Timesteps(density="logit_normal", mean=0.0, std=1.0, shift=1.0),
            steps=20_000,
            lr=1.0,
            warmup=0,
        ),
    ),
    optimiser=Prodigy(
        betas=(0.9, 0.999), weight_decay=0.01, bias_correction=True, safeguard_warmup=True, d0=1e-6
    ),
    clip=0.1,
    batch=Batching(size=8, micro=1, remainder="short"),
    latents="sample",
    caption_dropout=0.1,
    seed=0,
    sampling=Sampling(sampler="ultragen"),
    runtime=RUNTIME,
    sources=sources(
        family="UltraGen: FLUX.1-dev",
        surgeries="UltraGen: NTK factor 10, in training too",
        guidance="UltraGen, official configuration: 1",
        trainable="UltraGen: rank and alpha 16 on guide tokens alone",
        trainable__targets="UltraGen, paper: q, k and v; its code also adapts embedder, norms and outputs",
        windows="UltraGen: a guide of a quarter of the side, clean, at timestep 0",
        windows__window="UltraGen: 256 px, which is a quarter of the native grid",
        windows__rules="UltraGen, paper: its own window and those around it; the code has three other masks",
        windows__rules__guide_to_text="UltraGen, code of training; its sampling leaves the text out",
        windows__rules__guide_to_guide="UltraGen, paper: all of the guide, up to 8K",
        phases__data="UltraGen: 10,000 images of 1024 px that FLUX.1 generated, or crops of Aesthetic-4K",
        phases__resolution="UltraGen: 1024 px, the model's native size",
        phases__objective="UltraGen: flow matching on the image's tokens",
        phases__timesteps="UltraGen, official code: logit-normal(0, 1) without a shift",
        phases__steps="UltraGen, paper",
        phases__lr="UltraGen, official configuration: Prodigy with factor 1",
        optimiser="UltraGen, official configuration; betas, eps, d0 and d_coef are Prodigy's defaults",
        clip="UltraGen, official configuration",
        batch__size="UltraGen, paper: 2 GPUs with one image each, 4 steps accumulated; the code has 8",
        latents="UltraGen, official code: drawn from the VAE's distribution, image and guide",
        caption_dropout="UltraGen, official code",
    ),
)
