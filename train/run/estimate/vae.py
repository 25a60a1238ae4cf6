"""What a step of a VAE's training needs, counted by doing it on tensors without memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uhr.models.estimate.devices import Device
from uhr.models.estimate.operations import Operations
from uhr.models.estimate.shapes import empty_component, empty_components
from uhr.models.specs.spec import ModelSpec
from uhr.models.zoo import Model
from uhr.train.recipes.core.base import RecipeBase
from uhr.train.recipes.core.vae import VaeRecipe
from uhr.train.run.estimate.cost import Cost
from uhr.train.run.estimate.memory import Processes
from uhr.train.run.estimate.stored import counted, name_of


@dataclass(frozen=True)
class VaeStep:
    """Sizes of a VAE and of its steps.

    parameters, trained: their numbers. one: the most bytes alive at once in one pass over a crop, those of
        the perceptual network included. more: what another crop in the same pass adds.
    flops: operations of one crop, forward and backward.
    """

    parameters: int
    trained: int
    one: int
    more: int
    flops: int

    @classmethod
    def of(cls, recipe: VaeRecipe, spec: ModelSpec, vae: Any, height: int, width: int) -> VaeStep:
        """Count them on a VAE on the meta device, which is prepared, for crops of height x width px."""
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        from uhr.models.estimate.live_bytes import LiveBytes
        from uhr.train.objectives.draws import Draws
        from uhr.train.run.vae.model import prepare

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
        trained = sum(p.numel() for p in recipe.trainable.parameters(vae).values())
        return cls(
            sum(p.numel() for p in vae.parameters()),
            trained,
            one,
            peak(2) - one,
            counter.get_total_flops() // len(losses),
        )


class VaePlan:
    """The training of a VAE, of which nothing is loaded. Its weights are float32, and are the values that are
    trained.

    phases: as the plan has them.
    """

    def __init__(
        self, recipe: VaeRecipe, spec: ModelSpec, opened: Model | None, phases: Sequence[Mapping[str, Any]]
    ) -> None:
        self.recipe, self.spec, self._opened = recipe, spec, opened
        sizes = {bucket["size"]: _pixels(bucket["size"]) for phase in phases for bucket in phase["buckets"]}
        self._width, self._height = max(sizes.values(), key=math.prod)
        self._counted: dict[str, VaeStep] = {}

    def step(self, recipe: VaeRecipe) -> VaeStep:
        """The sizes for a recipe that may have another `gradient_checkpointing`."""
        spec, opened = self.spec, self._opened
        key = key_of(recipe, spec, self._height, self._width)

        def count() -> VaeStep:
            vae = empty_component(spec, "vae") if opened is None else empty_components(opened)["vae"]
            return VaeStep.of(recipe, spec, vae, self._height, self._width)

        if opened is None:
            return counted(key, lambda tree: VaeStep(**tree), count, dataclasses.asdict)
        name = name_of(key)
        if name not in self._counted:
            self._counted[name] = count()
        return self._counted[name]

    def cost(self, recipe: RecipeBase, processes: Processes, gpu: Device | None) -> Cost:
        """Memory of one process, and the seconds of a step if a GPU is named."""
        assert isinstance(recipe, VaeRecipe)
        step, samples = self.step(recipe), processes.samples(recipe)
        state, average = recipe.optimiser.state_bytes(), 4 if recipe.ema is not None else 0
        parts = {
            "weights": 4 * step.parameters,
            "gradients": 4 * step.trained,
            "optimiser": round(state * step.trained),
            "average": average * step.trained,
            "activations": step.one + step.more * (min(recipe.batch.micro, samples) - 1),
        }
        work = Operations(convolution=step.flops * samples)
        seconds = 0.0 if gpu is None else gpu.seconds(work, recipe.runtime.precision)
        steps = {} if gpu is None else {phase.name: seconds for phase in recipe.phases}
        return Cost({**parts, "total": sum(parts.values())}, steps)

    @property
    def parameters(self) -> dict[str, int]:
        step = self.step(self.recipe)
        return {"base": step.parameters, "total": step.parameters, "trainable": step.trained, "linears": 0}

    @property
    def storage(self) -> dict[str, Any]:
        """Bytes on disk per image, and per checkpoint."""
        recipe, step = self.recipe, self.step(self.recipe)
        each = recipe.optimiser.state_bytes() + (4 if recipe.ema is not None else 0)
        return {
            "pixels_per_picture": 3 * (recipe.phases[0].resolution or self.spec.native_size) ** 2,
            "checkpoint": 4 * step.parameters + round(each * step.trained),
        }


def key_of(recipe: VaeRecipe, spec: ModelSpec, height: int, width: int) -> Mapping[str, Any]:
    """The values on which the counts depend."""
    tree = recipe.published().model_dump(mode="json")
    return {
        "spec": spec.name,
        "part": tree["trainable"],
        "surgeries": tree["surgeries"],
        "latents": tree["latents"],
        "objectives": [phase["objective"] for phase in tree["phases"]],
        "size": [height, width],
        "gradient_checkpointing": recipe.runtime.gradient_checkpointing,
    }


def _pixels(size: str) -> tuple[int, int]:
    """Width and height in px of a bucket, from WIDTHxHEIGHT."""
    width, _, height = size.partition("x")
    return int(width), int(height)
