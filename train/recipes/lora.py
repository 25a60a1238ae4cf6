"""Plain LoRA by flow matching on a guidance-distilled FLUX.1: the baseline that other recipes are measured
by.
"""

from __future__ import annotations

from uhr.train.objectives.flow import Flow
from uhr.train.optimisers.kinds import AdamW
from uhr.train.recipes.core.base import Batching, Guidance, Phase, Recipe
from uhr.train.recipes.core.runtime import Runtime
from uhr.train.timesteps import Timesteps
from uhr.train.trainable.adapters import Lora

_DIFFUSERS = "diffusers examples/dreambooth/train_dreambooth_lora_flux.py, default"

RECIPE = Recipe(
    name="lora",
    about="plain LoRA by flow matching: style, subject or domain at the resolution of the data",
    family="flux1",
    guidance=Guidance(kind="embedded", scale=1.0),
    trainable=Lora(rank=16, alpha=16, targets="attention"),
    phases=(
        Phase(
            name="main",
            objective=Flow(),
            timesteps=Timesteps(density="logit_normal", mean=0.0, std=1.0, shift=3.0),
            steps=2000,
            lr=1e-4,
            warmup=0,
        ),
    ),
    optimiser=AdamW(betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-4),
    clip=1.0,
    batch=Batching(size=4, micro=1, remainder="short"),
    latents="sample",
    caption_dropout=0.1,
    seed=0,
    runtime=Runtime(
        device="auto",
        precision="bfloat16",
        gradient_checkpointing=True,
        checkpoint_every=200,
        keep_checkpoints=2,
    ),
    sources={
        "name": "ours",
        "about": "ours",
        "family": "ours: the geometry of FLUX.1's adapters",
        "surgeries": "none: the published architecture",
        "guidance": "URAE: 1.0, the unguided point; larger ones unlearn the distillation",
        "trainable.kind": "ours: the baseline of every trainer",
        "init": "ours: train an adapter further if one is given",
        "windows": "none: the published architecture",
        "proportional": "off: the published attention",
        "trainable.rank": "URAE, official code",
        "trainable.alpha": "equal to the rank, so that a reader that ignores alpha is right all the same",
        "trainable.targets": "URAE: q, k, v, out of the image stream and of the single blocks",
        "phases.name": "ours",
        "phases.data": "ours: one data set, each row once per epoch",
        "phases.resolution": "the model's native size",
        "phases.objective": "rectified flow, Liu et al. 2209.03003; the objective FLUX.1 was trained with",
        "phases.timesteps": "logit-normal(0, 1): Esser et al. 2403.03206, their best density",
        "phases.timesteps.shift": "static 3, as the samplers' schedule: sigma is drawn where sampling goes",
        "phases.steps": "ours: a start for some hundred images",
        "phases.lr": _DIFFUSERS,
        "phases.schedule": _DIFFUSERS,
        "phases.warmup": f"{_DIFFUSERS} (its constant schedule warms up over no step)",
        "optimiser": _DIFFUSERS,
        "clip": _DIFFUSERS,
        "on_nonfinite": "ours: nothing is left out silently",
        "batch.size": _DIFFUSERS,
        "batch.micro": "ours: the least memory",
        "batch.remainder": "ours: every row once per epoch",
        "latents": "as diffusers: a new draw from the VAE's distribution at each visit",
        "captions": "ours: the first caption of each image",
        "caption_dropout": "Ho and Salimans 2207.12598: keeps the unconditional prediction in shape",
        "ema": "none, as diffusers' script",
        "seed": "ours",
        "sampling": "ours: the plain sampler at the native size",
        "validation": "by default nothing is measured",
        "runtime": "ours",
    },
)
