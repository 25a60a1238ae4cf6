"""An image by each sampler, through its pipeline, with the numbers of steps of its paper.

Each sampler first generates with few steps: that warms it up, and gives the seconds of a call in each of its
stages, and of everything else (VAE, filters, putting patches together). From these its whole time is
extrapolated. If that is within the limit, the whole image is generated, and its wall clock counts: an aim
of seconds is held by a whole image alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.report import Row
from benchmarks.gpu.step import DENSE, blocks, forget, one_call
from uhr.base.console import Advance, progress
from uhr.models.attention.call import Windows
from uhr.models.attention.counts import pairs
from uhr.models.samplers import find_sampler, names_for, sampler_class
from uhr.models.samplers.core.plan import SamplingPlan
from uhr.models.samplers.core.sampler import plan_of_spec

PART = "sampler"
OPTIONS: Mapping[str, Mapping[str, Any]] = {"euler": {"toolkit": {}}}
"""Options of a call besides size, steps and guidance: plain Euler cannot generate above the native size
without the toolkit."""

FEW: Mapping[str, Mapping[str, Any]] = {
    "euler": {"num_inference_steps": 2},
    "sdedit": {"num_inference_steps": 4, "base_steps": 2},
    "multidiffusion": {"num_inference_steps": 1},
    "demofusion": {"num_inference_steps": 1},
    "imax": {"num_inference_steps": 2, "base_steps": 2},
    "hiflow": {"num_inference_steps": 4, "starts": (0.8, 0.8, 0.8)},
    "ultragen": {"num_inference_steps": 3, "base_steps": 2},
    "patch-cascade": {"num_inference_steps": 1, "base_steps": 2},
    "ultraflux": {"num_inference_steps": 2},
}
"""The fewest steps through all stages of a sampler, with two calls in each where that is possible: the first
call of a stage makes kernels and fills caches."""

PRIORITY = (
    ("patch-cascade", "4K"),
    ("ultragen", "4K"),
    ("ultraflux", "4K"),
    ("hiflow", "4K"),
    ("ultragen", "8K"),
)
"""The cheapest come first; others follow in the order of the registry."""


class OverTime(Exception):
    """An image takes longer than it may."""


@dataclass
class Calls:
    """Every call of a transformer while it is watched: when it began and ended, and its operations."""

    bench: Bench
    advance: Advance = lambda n=1, note=None: None
    marks: list[tuple[Any, Any]] = field(default_factory=list)
    flops: list[float] = field(default_factory=list)

    def before(self, module: Any, args: Any, given: dict[str, Any]) -> None:
        text, image = given["encoder_hidden_states"].shape[1], given["hidden_states"].shape[1]
        seen, shape = (text + image) ** 2, self.bench.shape
        windows = (given.get("joint_attention_kwargs") or {}).get("attention")
        if isinstance(windows, Windows):
            counted = pairs(windows.layout, windows.rules, text, windows.guide is not None)
            # a cached guide is computed once
            seen = counted.total - (counted.guide if windows.guide is None or windows.guide.cached else 0)
        self.flops.append(shape.call_flops(text + image, seen))
        self.begun = self.bench.clock.mark()

    def after(self, module: Any, args: Any, given: dict[str, Any], output: Any) -> None:
        self.marks.append((self.begun, self.bench.clock.mark()))
        self.advance()

    def seconds(self) -> list[float]:
        """Of each call; the device must have finished."""
        return [self.bench.clock.between(*pair) for pair in self.marks]

    @contextmanager
    def of(self, transformer: Any) -> Generator[None]:
        hooks = [
            transformer.register_forward_pre_hook(self.before, with_kwargs=True),
            transformer.register_forward_hook(self.after, with_kwargs=True),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


@dataclass(frozen=True)
class MeasuredCall:
    """One whole call of a pipeline."""

    wall: float
    calls: list[float]
    """Seconds of each call of the transformer."""

    flops: float
    peak: float | None
    stages: list[int]
    """Calls of each stage."""

    @property
    def outside_calls(self) -> float:
        """Seconds of everything except calls."""
        return self.wall - sum(self.calls)

    def per_call(self) -> list[float]:
        """Seconds of a call in each stage: the median of all but the stage's first, which warms up."""
        found, first = [], 0
        for count in self.stages:
            own = self.calls[first : first + count]
            found.append(statistics.median(own[1:] or own))
            first += count
        return found


def run(bench: Bench) -> None:
    """A row for each sampler; 8K by UltraGen alone."""
    names = names_for(bench.shape.spec.family)
    chosen = [*PRIORITY, *((name, "4K") for name in names if (name, "4K") not in PRIORITY)]
    for suffix in ["", ", blocks compiled"] if bench.compiled else [""]:
        with torch.no_grad(), blocks(bench.models.transformer, compiled=bool(suffix)):
            for name, size in chosen:
                if size in bench.sizes and (not bench.samplers or name in bench.samplers):
                    forget(compiled=bool(suffix))
                    _one(bench, name, size, suffix)


def _one(bench: Bench, name: str, size: str, suffix: str) -> None:
    cls = sampler_class(name, bench.shape.spec.family)
    few = FEW.get(name, {"num_inference_steps": 2})
    plan, short = _plan(bench, name, size, {}), _plan(bench, name, size, few)
    calls, first = _calls(plan), _calls(short)
    variant = f"{sum(calls)} calls{suffix}"
    # as if each call were dense and of the native size: what is larger is cut short by the deadline
    native = bench.shape.layout("1K").tokens + bench.shape.text
    least = bench.judged(sum(first) * bench.shape.call_flops(native, native**2))
    if bench.left_out(PART, name, size, variant, least):
        return
    one_call(bench, "1K", DENSE)()  # a base pass of one call would be all warm-up
    found = None
    try:
        rehearsal = bench.attempt(PART, name, size, variant, lambda: _generate(bench, cls, name, short, few))
        if rehearsal is None:
            return
        found = _extrapolated(name, size, variant, rehearsal, calls)
        if found.seconds is not None and found.seconds <= min(bench.limit, bench.budget.left):
            whole = bench.attempt(PART, name, size, variant, lambda: _generate(bench, cls, name, plan, {}))
            found = found if whole is None else _measured(name, size, variant, whole)
    except OverTime as over:
        found = found or Row(PART, name, size, variant, None, f"left out: {over}")
    bench.table.add(found)


def _plan(bench: Bench, name: str, size: str, overrides: Mapping[str, Any]) -> SamplingPlan:
    """The sampler's own plan; `overrides` replaces what it was published with."""
    sampler, side = find_sampler(name), bench.shape.side(size)
    given = {**OPTIONS.get(name, {}), **overrides}
    steps = given.pop("num_inference_steps", None)
    return plan_of_spec(sampler, bench.shape.spec, sampler.Options(**given), (side, side), steps)


def _calls(plan: SamplingPlan) -> list[int]:
    """Calls of each stage."""
    return [stage.total_calls for stage in plan.stages]


def _generate(
    bench: Bench, cls: Any, name: str, plan: SamplingPlan, overrides: Mapping[str, Any]
) -> MeasuredCall:
    """An image by a pipeline's whole call, from embeddings of a prompt to PIL; `overrides` replaces what the
    sampler was published with."""
    request, clock, stages = plan.request, bench.clock, _calls(plan)
    pipeline, watched = bench.models.pipeline(cls), Calls(bench)
    given = {**OPTIONS.get(name, {}), **overrides, "num_inference_steps": request.steps}
    last: list[torch.Tensor] = []

    def after_step(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        last[:] = [tensors["latents"]]
        if bench.budget.left < 0:
            raise OverTime(f"the budget ended after {len(watched.flops)} of {sum(stages)} calls")
        return {}

    clock.clear()
    title, transformer = f"{name} {request.width} px", pipeline.transformer
    with progress(title, sum(stages), "calls") as advance, watched.of(transformer):
        watched.advance = advance
        clock.finish()
        begun = time.perf_counter()
        (image,) = pipeline(
            **bench.models.prompt(),
            height=request.height,
            width=request.width,
            guidance_scale=plan.guidance,
            generator=torch.Generator(bench.shape.device).manual_seed(4),
            callback_on_step_end=after_step,
            **given,
        ).images
        clock.finish()
        wall = time.perf_counter() - begun
    if image.size != (request.width, request.height) or not bool(torch.isfinite(last[0]).all()):
        raise RuntimeError(f"{name} gave {image.size} px, or latents that are not finite")
    if len(watched.flops) != sum(stages):
        raise RuntimeError(f"{name} took {len(watched.flops)} calls, and its plan says {sum(stages)}")
    return MeasuredCall(wall, watched.seconds(), sum(watched.flops), clock.peak(), stages)


def _extrapolated(name: str, size: str, variant: str, few: MeasuredCall, calls: Sequence[int]) -> Row:
    """The whole image's seconds from those of a call in each stage."""
    seconds = few.outside_calls + sum(n * each for n, each in zip(calls, few.per_call(), strict=True))
    how = f"extrapolated from {len(few.calls)} calls; {few.outside_calls:.3g} s outside calls"
    return replace(_row(name, size, variant, few, seconds, how), extrapolated=True)


def _measured(name: str, size: str, variant: str, whole: MeasuredCall) -> Row:
    return _row(
        name, size, variant, whole, whole.wall, f"wall clock; {whole.outside_calls:.3g} s outside calls"
    )


def _row(name: str, size: str, variant: str, measured: MeasuredCall, seconds: float, how: str) -> Row:
    rate = measured.flops / sum(measured.calls) / 1e12
    return Row(PART, name, size, variant, seconds, how, tflops=rate, peak=measured.peak)
