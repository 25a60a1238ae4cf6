"""UltraFlux, stage 2 (CVPR 2026): high noise on the most aesthetic twentieth of the data."""

from __future__ import annotations

from uhr.train.optimisers.kinds import AdamW
from uhr.train.recipes.core.base import Batching, DataUse, Guidance, Init, Recipe, Sampling
from uhr.train.recipes.core.shared import RUNTIME, sources
from uhr.train.recipes.ultraflux_stage1 import PHASE as STAGE1
from uhr.train.trainable.backbone import WholeBackbone

PHASE = STAGE1.model_copy(
    update={
        "name": "stage2",
        "data": (DataUse(where="artimuse_rank <= 0.05"),),
        "timesteps": STAGE1.timesteps.with_band((0.54, 1.0)),
        "steps": 2000,
    }
)

RECIPE = Recipe(
    name="ultraflux-stage2",
    about="high noise on the top 5 % by ArtiMuse, after ultraflux-stage1 (UltraFlux)",
    family="flux1",
    surgeries=({"surgery": "rope-resonance", "window": 64},),
    guidance=Guidance(kind="embedded", scale=1.0),
    trainable=WholeBackbone(),
    init=Init(use="continue", after="ultraflux-stage1"),
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
        phases__data="UltraFlux: the top 5 % by ArtiMuse; the column of ranks is that of curation",
        phases__resolution="UltraFlux: 4K, encoded by a VAE of factor 16 into the buckets of its table",
        phases__objective="UltraFlux: SNR-aware Huber wavelet loss",
        phases__objective__gamma="ours: not published; that of min-SNR weighting (2303.09556)",
        phases__objective__beta="ours: not published; the smallest for which the weight stays finite",
        phases__objective__alpha="ours: not published",
        phases__objective__c_min="UltraFlux: about 0.2",
        phases__objective__c_max="UltraFlux: about 1.0",
        phases__timesteps="ours: uniform over the scheduler's unshifted table; the density is not published",
        phases__timesteps__band="UltraFlux: indices 0 to 459 of the table, sigma 0.541 to 1 unshifted",
        init="UltraFlux: stage 2 follows stage 1",
        phases__steps="UltraFlux",
        phases__lr="UltraFlux",
        optimiser="UltraFlux: AdamW; its other values are torch's defaults",
        clip="ours: not published",
        batch__size="UltraFlux: 64 in all",
        caption_dropout="ours: not published",
    ),
)
