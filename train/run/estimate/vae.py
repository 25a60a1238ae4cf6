"""What a step of a VAE's training needs, counted by doing it on tensors without memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from uhr.models.estimate.devices import Device
from uhr.models.estimate.live_bytes import LiveBytes
from uhr.models.estimate.operations import Operations
from uhr.models.specs.spec import ModelSpec
from uhr.train.objectives.draws import Draws
from uhr.train.recipes.core.vae import VaeRecipe
from uhr.train.run.estimate.memory import Processes, fit
from uhr.train.run.vae.model import prepare


@dataclass(frozen=True)
class VaeStep:
    """Sizes of a VAE and of its steps.

    parameters, trained: their numbers. activations: the most bytes alive at once in one pass over the crops
        that are computed together, those of the perceptual network included.
    flops: operations of one crop, forward and backward.
    """

    parameters: int
    trained: int
    activations: int
    flops: int

    @classmethod
    def of(
        cls, recipe: VaeRecipe, spec: ModelSpec, vae: Any, height: int, width: int, together: int
    ) -> VaeStep:
        """Count them on a VAE on the meta device, which is prepared: `together` crops of height x width px
        in one pass.
        """
        from torch.utils.flop_counter import FlopCounterMode

        network = prepare(vae, recipe, spec)
        # there is no autocast on the meta device; elsewhere it keeps normalisation in float32, and saves
        # little memory
        network.dtype = torch.float32
        losses = [phase.objective.open(torch.device("meta")) for phase in recipe.phases]

        def peak(count: int) -> int:
            images = torch.empty(count, 3, height, width, device="meta")
            draws = Draws(0, 0, range(count)) if recipe.latents == "sample" else None
            most = 0
            for loss in losses:
                vae.zero_grad(set_to_none=True)
                with LiveBytes() as live:
                    loss(images, network.code(images, draws)).loss.sum().backward()
                most = max(most, live.peak)
            return most

        with FlopCounterMode(display=False) as counter:
            one = peak(1)
        # what one more crop adds
        more = (peak(2) - one) * (together - 1) if together > 1 else 0
        trained = sum(p.numel() for p in recipe.trainable.parameters(vae).values())
        return cls(
            sum(p.numel() for p in vae.parameters()),
            trained,
            one + more,
            counter.get_total_flops() // len(losses),
        )


def vae_plan(
    recipe: VaeRecipe,
    spec: ModelSpec,
    vae: Any,
    phases: Sequence[Mapping[str, Any]],
    gpu: Device | None,
    processes: Processes,
) -> dict[str, Any]:
    """Parameters, memory, time and storage of the training of a VAE on the meta device, as plain values.

    phases: as the plan has them. The weights are float32, and are the values that are trained.
    """
    sizes = {bucket["size"]: _pixels(bucket["size"]) for phase in phases for bucket in phase["buckets"]}
    width, height = max(sizes.values(), key=math.prod)
    step = VaeStep.of(recipe, spec, vae, height, width, min(recipe.batch.micro, processes.samples(recipe)))
    state, average = recipe.optimiser.state_bytes(), 4 if recipe.ema is not None else 0
    parts = {
        "weights": 4 * step.parameters,
        "gradients": 4 * step.trained,
        "optimiser": round(state * step.trained),
        "average": average * step.trained,
        "activations": step.activations,
    }
    memory = {**parts, "total": sum(parts.values())}
    flops = step.flops * processes.samples(recipe)
    timed: dict[str, Any] = {}
    if gpu is not None:
        seconds = gpu.seconds(Operations(convolution=flops), recipe.runtime.precision)
        steps = {phase.name: seconds for phase in recipe.phases}
        timed = {"gpu": fit(memory, gpu), "time": {"steps": steps, "run": seconds * recipe.steps}}
    return {
        "parameters": {
            "base": step.parameters,
            "total": step.parameters,
            "trainable": step.trained,
            "linears": 0,
        },
        "memory": memory,
        **timed,
        "storage": {
            "pixels_per_picture": 3 * (recipe.phases[0].resolution or spec.native_size) ** 2,
            "checkpoint": 4 * step.parameters + round((state + average) * step.trained),
        },
    }


def _pixels(size: str) -> tuple[int, int]:
    """Width and height in px of a bucket, from WIDTHxHEIGHT."""
    width, _, height = size.partition("x")
    return int(width), int(height)
