"""What `uhr train lora` will do, before anything is downloaded or written: images, steps, memory, time."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from uhr.base.console import note
from uhr.base.errors import UserError
from uhr.base.formatting import gibibytes
from uhr.lora import choices
from uhr.lora.captions import Captions, complete, validation_prompts
from uhr.lora.images import Images, scan
from uhr.lora.record import LoraRecord, LoraRequest
from uhr.models.estimate.devices import Device, device, local_device
from uhr.models.estimate.shapes import spec_named
from uhr.models.specs.registry import names
from uhr.models.specs.spec import ModelSpec
from uhr.train.encode.buckets import Bucket, buckets
from uhr.train.encode.config import EncodeConfig
from uhr.train.recipes.core.base import Recipe
from uhr.train.run.estimate.estimate import estimate
from uhr.train.run.estimate.fitting import Setting, no_setting

CPU = "cpu"

HOST_SHARE = 0.75
"""Share of this machine's memory that streamed weights may take."""


@dataclass(frozen=True)
class LoraPlan:
    """The plan of one LoRA.

    gpu: the GPU that is planned for; None is the CPU. settings: changes to the recipe that were chosen for
    it. estimate: as `train plan` has it, with these. images_seconds: of all validation images; None where it
    is not estimated. peak: the most bytes on the device, validation images included.
    """

    request: LoraRequest
    spec: ModelSpec
    images: Images
    large: int
    captions: Captions
    resolution: int
    gpu: Device | None
    settings: tuple[str, ...]
    changes: tuple[str, ...]
    recipe: Recipe
    estimate: dict[str, Any]
    images_seconds: float | None
    peak: int

    @property
    def small(self) -> int:
        """The number of images that are smaller than their bucket."""
        return len(self.images.images) - self.large

    @property
    def smaller(self) -> tuple[int, int] | None:
        """Where more than half of the images are too small: a resolution at which at least half are not, and
        their number.
        """
        if 2 * self.small <= len(self.images.images):
            return None
        return _smaller(self.images, self.resolution, self.spec)


def target(on: str | None) -> Device | None:
    """The GPU to plan for: that of this machine by default, or the CPU where there is none."""
    if on == CPU:
        return None
    return local_device() if on is None else device(on)


def check_here(on: str | None) -> None:
    """Raise UserError if the GPU that the user named is not the one of this machine."""
    if on in (None, CPU):
        return
    named, here = device(on), local_device()
    if here is None or here.name != named.name:
        there = "no GPU" if here is None else here.title
        raise UserError(f"--on {on}, and this machine has {there}", "add --plan to see its plan alone")


def check_weights(request: LoraRequest) -> None:
    """Raise UserError if the model is the name of a spec, which is enough for a plan and has no weights."""
    if request.model in names() and request.base is None:
        request.named.open()


def check_same(record: LoraRecord, on: str | None) -> None:
    """Raise UserError if the user names another GPU than the one for which settings were chosen."""
    before = record.gpu or CPU
    if on not in (None, before):
        what = f"--on {on}, and the settings of this LoRA were chosen for {before}"
        raise UserError(what, "leave --on out, or choose another --name")


def plan(request: LoraRequest, on: str | None) -> LoraPlan:
    """Plan a LoRA. Nothing is written, and of a model on the hub at most its configuration is fetched.

    Raises UserError if the model or the images do not fit, or if no setting fits the GPU.
    """
    spec = _spec(request)
    choices.recipe_name(spec)
    gpu = target(on)
    found = scan(request.images)
    resolution = request.resolution or spec.native_size
    large, counts = found.in_buckets(_table(resolution, spec))
    if not large:
        raise _too_small(request.images, found, resolution, spec)
    captions = complete(request.images, large, request.trigger)
    return _Planner(request, spec, found, captions, resolution, gpu, tuple(counts), on is None).plan()


@dataclass(frozen=True)
class _Planner:
    """Chooses the settings. here: whether the GPU is that of this machine."""

    request: LoraRequest
    spec: ModelSpec
    found: Images
    captions: Captions
    resolution: int
    gpu: Device | None
    sizes: tuple[Bucket, ...]
    here: bool

    def plan(self) -> LoraPlan:
        if self.gpu is None:
            batch = self._recipe(()).batch.size
            made = self._with(tuple(choices.cpu_settings(batch)))
            memory = _host_memory()
            if self.here and made.peak > memory:
                what = f"{self.spec.name} needs {gibibytes(made.peak)} on the CPU, and this machine has"
                fix = "there is no GPU here: name one with --plan --on, such as --plan --on rtx-4090"
                raise UserError(f"{what} {gibibytes(memory)}", fix)
            return made
        keep = choices.kept(self.request.sets)
        options = estimate(
            self._recipe(()), self.request.named, [], self.gpu.name, keep=keep, sizes=self.sizes
        )["settings"]
        settings = [Setting(**each) for each in options]
        host = _host_memory() * HOST_SHARE if self.here else None
        for setting in settings:
            if not setting.fits or (host is not None and setting.host > host):
                continue
            made = self._with(setting.changes)
            if made.peak <= self.gpu.usable:
                return made
        what = f"{self.spec.name} at {self.resolution} px, {self.gpu.title}"
        fitting = [setting for setting in settings if setting.fits]
        if not fitting:
            raise UserError(f"{what}: {no_setting(min(settings, key=lambda each: each.total))}")
        least = min(setting.host for setting in fitting)
        if host is not None and least > host:
            of = f"{HOST_SHARE:.0%} of this machine's memory is {gibibytes(int(host))}"
            what += f": streamed weights take {gibibytes(least)}, and {of}"
            raise UserError(what, "leave out --set runtime.quantize, or --set runtime.quantize=nf4")
        raise UserError(f"{what}: the validation images do not fit", "--set validation.images=null")

    def _changes(self, settings: tuple[str, ...]) -> list[str]:
        prompts = validation_prompts(self.captions.texts, self.captions.trigger)
        return choices.changes(
            self.spec, len(self.captions.texts), self.resolution, prompts, settings, self.request.sets
        )

    def _recipe(self, settings: tuple[str, ...]) -> Recipe:
        return choices.resolved(self.spec, self._changes(settings))

    def _with(self, settings: tuple[str, ...]) -> LoraPlan:
        """The plan with these settings."""
        changed = self._changes(settings)
        recipe = choices.resolved(self.spec, changed)
        gpu = self.gpu
        made = estimate(recipe, self.request.named, [], None if gpu is None else gpu.name, sizes=self.sizes)
        peak, seconds = made["memory"]["total"], None
        if gpu is not None and recipe.validation.images is not None:
            one, held = self._image
            rest = sum(made["memory"].get(name, 0) for name in ("activations", "gradients", "host"))
            peak = max(peak, sum(made["memory"].values()) - made["memory"]["total"] - rest + held)
            sets = -(-recipe.steps // recipe.validation.images.every) + 1
            seconds = sets * len(recipe.validation.images.prompts) * one
        return LoraPlan(
            request=self.request,
            spec=self.spec,
            images=self.found,
            large=len(self.captions.texts),
            captions=self.captions,
            resolution=self.resolution,
            gpu=gpu,
            settings=settings,
            changes=tuple(changed),
            recipe=recipe,
            estimate=made,
            images_seconds=seconds,
            peak=peak,
        )

    @cached_property
    def _image(self) -> tuple[float, int]:
        """The seconds of one validation image, and the most bytes that it takes besides the transformer's
        weights: the VAE and activations.
        """
        from uhr.models.estimate.plan import plan as plan_image
        from uhr.models.generate.request import Item, Request

        assert self.gpu is not None
        named = self.request.named
        size = (self.resolution, self.resolution)
        request = Request(sampler="euler", model=named.model, base=named.base, spec=named.spec, size=size)
        found = plan_image(request, Item(prompt=""), self.gpu.name)
        seconds = {name: each for name, each in found.requested.seconds.items() if name != "text"}
        needs = (
            sum(size for name, size in phase.held.items() if not name.endswith("weights"))
            for phase in found.requested.phases
        )
        return sum(seconds.values()), max(needs) + found.cost.weights(None)["vae"].whole


def _spec(request: LoraRequest) -> ModelSpec:
    named = request.named
    known = spec_named(named.model) if named.base is None and named.spec is None else None
    spec = named.open().spec if known is None else known
    if spec.guidance == "none":
        what = f"{spec.name} is distilled to few steps, and training undoes that"
        note(f"{what}: a LoRA is usually trained on the model that it was distilled from")
    return spec


def _host_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _too_small(folder: Path, found: Images, resolution: int, spec: ModelSpec) -> UserError:
    """No image covers its bucket."""
    what = f"all {len(found.images)} images of {folder} are smaller than {resolution} px training needs"
    largest = max(found.images, key=lambda image: image.height * image.width)
    what += f"; the largest has {largest.width}x{largest.height} px"
    smaller = _smaller(found, resolution, spec)
    more = "" if smaller is None else f", or --resolution {smaller[0]}"
    return UserError(what, f"give larger images{more}")


def _smaller(found: Images, resolution: int, spec: ModelSpec) -> tuple[int, int] | None:
    """The largest resolution below `resolution` at which at least half of the images cover their bucket, and
    their number; None if there is none.
    """
    multiple = spec.pixel_multiple * (4 if spec.pixel_multiple < 64 else 1)
    for smaller in range((resolution - 1) // multiple * multiple, 0, -multiple):
        large = len(found.in_buckets(_table(smaller, spec))[0])
        if 2 * large >= len(found.images):
            return smaller, large
    return None


def _table(resolution: int, spec: ModelSpec) -> tuple[Bucket, ...]:
    return buckets(resolution, EncodeConfig().aspects, spec.pixel_multiple)
