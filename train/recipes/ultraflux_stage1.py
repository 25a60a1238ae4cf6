"""UltraFlux, stage 1 (CVPR 2026): the whole backbone at 4K on all data.

Its training code is not published: values that the paper leaves out are ours.
"""

from __future__ import annotations

from uhr.train.objectives.wavelet import SnrHuberWavelet
from uhr.train.optimisers.kinds import AdamW
from uhr.train.recipes.core.base import Batching, Guidance, Phase, Recipe
from uhr.train.recipes.core.runtime import Sampling
from uhr.train.recipes.core.shared import RUNTIME, sources
from uhr.train.timesteps import Timesteps
from uhr.train.trainable.backbone import WholeBackbone

PHASE = Phase(
    name="stage1",
    resolution=4096,
    objective=SnrHuberWavelet(gamma=5.0, beta=0.5, alpha=0.5, c_min=0.2, c_max=1.0),
    timesteps=Timesteps(density="uniform", shift=1.0),
    steps=30_000,
    lr=1e-6,
    warmup=0,
)

RECIPE = Recipe(
    name="ultraflux-stage1",
    about="native 4K with an F16 VAE: all weights, all noise levels, all data (UltraFlux)",
    family="flux1",
    surgeries=({"surgery": "rope-resonance", "window": 64},),
    guidance=Guidance(kind="embedded", scale=1.0),
    trainable=WholeBackbone(),
    phases=(PHASE,),
    optimiser=AdamW(betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01),
    clip=1.0,
    batch=Batching(size=64, micro=1, remainder="short"),
    latents="sample",
    caption_dropout=0.1,
    seed=0,
    sampling=Sampling(sampler="ultraflux"),
    runtime=RUNTIME,
    sources=sources(
        family="UltraFlux: FLUX.1-dev",
        surgeries="UltraFlux, official code: Resonance RoPE over a window of 64 tokens (2048 px at F16)",
        guidance="ours: not published; URAE's 1.0, at which flow matching does not unlearn the distillation",
        trainable="UltraFlux: all weights of the transformer",
        phases__data="UltraFlux: all of MultiAspect-4K-1M",
        phases__resolution="UltraFlux: 4K, encoded by a VAE of factor 16 into the buckets of its table",
        phases__objective="UltraFlux: SNR-aware Huber wavelet loss",
        phases__objective__gamma="ours: not published; that of min-SNR weighting (2303.09556)",
        phases__objective__beta="ours: not published; the smallest for which the weight stays finite",
        phases__objective__alpha="ours: not published",
        phases__objective__c_min="UltraFlux: about 0.2",
        phases__objective__c_max="UltraFlux: about 1.0",
        phases__timesteps="ours: uniform over the scheduler's unshifted table; the density is not published",
        phases__steps="UltraFlux",
        phases__lr="UltraFlux",
        optimiser="UltraFlux: AdamW; its other values are torch's defaults",
        clip="ours: not published",
        batch__size="UltraFlux: 64 in all",
        caption_dropout="ours: not published",
    ),
)
