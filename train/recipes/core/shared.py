"""Values that the papers' recipes have in common, and the sources of values that mean the same in all."""

from __future__ import annotations

from collections.abc import Mapping

from uhr.train.recipes.core.base import Runtime

RUNTIME = Runtime(
    device="auto",
    precision="bfloat16",
    gradient_checkpointing=True,
    checkpoint_every=500,
    keep_checkpoints=2,
)

GENERAL = {
    "name": "ours",
    "about": "ours",
    "surgeries": "none: the published architecture",
    "windows": "none: the published architecture",
    "proportional": "off: the published attention",
    "init": "ours: train a part further if one is given",
    "phases.name": "ours",
    "phases.data": "ours: each row as often as the others",
    "phases.resolution": "the model's native size",
    "phases.schedule": "constant, as no other is mentioned",
    "phases.warmup": "none, as none is mentioned",
    "optimiser": "ours: torch's defaults",
    "batch.micro": "ours: the least memory",
    "batch.remainder": "ours: every row once per epoch",
    "latents": "ours, as diffusers: a new draw from the VAE's distribution at each visit",
    "captions": "ours: the first caption of each image",
    "caption_dropout": "none, as none is mentioned",
    "ema": "none, as none is mentioned",
    "seed": "ours",
    "sampling": "ours: the sampler of the recipe's paper",
    "runtime": "ours",
    "validation": "nothing is measured unless it is asked for",
}
"""Sources of the values that most recipes leave as they are."""


def sources(**own: str) -> Mapping[str, str]:
    """`GENERAL` with a recipe's own sources; `__` in a name is the dot of a path."""
    return {**GENERAL, **{name.replace("__", "."): text for name, text in own.items()}}
