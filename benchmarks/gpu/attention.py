"""One layer's attention: windows by either back end against torch's dense SDPA, forward and backward.

Inputs are as diffusers' processors have them, [1, tokens, heads, head_dim], and what windows take includes
joining the guide's keys to the others and the guide's own attention (as in a call without a cache).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.report import Row
from benchmarks.gpu.shapes import Shape
from uhr.models.attention import flex, gathered
from uhr.models.attention.counts import pairs
from uhr.models.attention.layout import WindowLayout
from uhr.models.attention.window_rules import WindowRules

Results = tuple[torch.Tensor, ...]
FLASH, CUDNN = "dense, flash", "dense, cuDNN"
WINDOWS = {"flex": "windows, flex", "gathered": "windows, gathered"}
BACKWARD = 2.5
"""Operations of a backward pass over those of the forward: five products in place of two."""


@dataclass
class Inputs:
    """Random queries, keys and values of text and image, and of the guide."""

    joint: list[torch.Tensor]
    guide: list[torch.Tensor]
    layout: WindowLayout
    rules: WindowRules
    masks: flex.BlockMasks

    @classmethod
    def of(cls, shape: Shape, size: str) -> Inputs:
        layout, draw = shape.layout(size), torch.Generator(shape.device).manual_seed(0)

        def three(tokens: int) -> list[torch.Tensor]:
            measures = (1, tokens, shape.heads, shape.head_dim)
            place: dict[str, Any] = {"device": shape.device, "dtype": shape.dtype, "generator": draw}
            return [torch.randn(measures, **place) for _ in range(3)]

        joint, guide = three(shape.text + layout.tokens), three(layout.guide_tokens)
        return cls(joint, guide, layout, WindowRules(), flex.BlockMasks())

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [*self.joint, *self.guide]

    def dense(self, backend: SDPBackend) -> Results:
        query, key, value = (x.transpose(1, 2) for x in self.joint)
        with sdpa_kernel([backend]):
            return (F.scaled_dot_product_attention(query, key, value),)

    def cudnn_takes_them(self) -> bool:
        """Whether torch has a cuDNN kernel for the dense variant: the faster peer where there is one."""
        from torch.backends.cuda import SDPAParams, can_use_cudnn_attention

        query, key, value = (x.transpose(1, 2) for x in self.joint)
        return can_use_cudnn_attention(SDPAParams(query, key, value, None, 0.0, False, False))

    def windows(self, backend: str) -> Results:
        query, key, value = self.joint
        own = self.guide[1], self.guide[2]
        text = query.shape[1] - self.layout.tokens
        if backend == "flex":
            mask = self.masks.get(self.layout, self.rules, text, True, query.device)
            image = flex.attend(query, key, value, own, mask)
        else:
            image = gathered.attend(query, key, value, own, self.layout, self.rules)
        text_states = key[:, :text], value[:, :text]
        return image, gathered.attend_guide(self.guide[0], own, text_states, self.layout, self.rules)


def run(bench: Bench) -> None:
    """A row for each size, direction and variant."""
    rates: dict[tuple[str, str], float] = {}
    for size in bench.sizes:
        inputs = Inputs.of(bench.shape, size)
        measure(bench, size, "forward", inputs, rates)
        for x in inputs.tensors:
            x.requires_grad_()
        measure(bench, size, "backward", inputs, rates)
        del inputs
        bench.clock.clear()


def _variants(bench: Bench, inputs: Inputs, backward: bool) -> dict[str, Callable[[], Results]]:
    variants = {FLASH: lambda: inputs.dense(SDPBackend.FLASH_ATTENTION)}
    if bench.clock.cuda and inputs.cudnn_takes_them():
        variants[CUDNN] = lambda: inputs.dense(SDPBackend.CUDNN_ATTENTION)
    if bench.clock.cuda or not backward:  # on a CPU FlexAttention has no backward pass
        variants[WINDOWS["flex"]] = lambda: inputs.windows("flex")
    variants[WINDOWS["gathered"]] = lambda: inputs.windows("gathered")
    return variants


def measure(bench: Bench, size: str, what: str, inputs: Inputs, rates: dict[tuple[str, str], float]) -> None:
    """A row for each variant of one direction, "forward" or "backward"; `rates` are operations a second so
    far, by variant and direction."""
    counted = pairs(inputs.layout, inputs.rules, bench.shape.text)
    backward = what == "backward"
    runs: dict[str, Callable[[], object]] = {}
    flops, first, peaks, results = {}, {}, {}, {}
    for variant, forward in _variants(bench, inputs, backward).items():
        dense = variant in (FLASH, CUDNN)
        work = bench.shape.attention_flops(counted.dense if dense else counted.total)
        flops[variant] = work * (BACKWARD if backward else 1)
        # the forward pass before it, and the run that warms up
        seconds = bench.judged(flops[variant], rates.get((variant, what))) * (bench.rounds + 1)
        if bench.left_out("attention", what, size, variant, seconds):
            continue
        run = _graph(forward, inputs) if backward else _without_graph(forward)

        def warm(variant: str = variant, run: Callable[[], object] = run) -> object:
            bench.clock.clear()
            first[variant] = bench.clock.seconds(run)
            peaks[variant] = bench.clock.peak()
            return run() if variant in WINDOWS.values() else True

        result = bench.attempt("attention", what, size, variant, warm)
        if result is not None:
            runs[variant], results[variant] = run, result
    best, error = bench.clock.best(runs, bench.rounds), _difference(results)
    for variant, seconds in best.items():
        rates[variant, what] = flops[variant] / seconds
        off = error if variant == WINDOWS["flex"] else None
        times = best[FLASH] / seconds if FLASH in best else None
        how, rate = _how(bench, first[variant], off), flops[variant] / seconds / 1e12
        bench.table.add(
            Row("attention", what, size, variant, seconds, how, times, rate, peaks[variant], error=off)
        )


def _how(bench: Bench, first: float, error: float | None) -> str:
    text = f"best of {bench.rounds}; first {first:.3g} s"
    return text if error is None else f"{text}; off gathered by {error:.1e}"


def _without_graph(forward: Callable[[], Results]) -> Callable[[], Results]:
    def run() -> Results:
        with torch.no_grad():
            return forward()

    return run


def _graph(forward: Callable[[], Results], inputs: Inputs) -> Callable[[], Results]:
    """The backward pass alone: the forward one is run when it is first called."""
    kept: list[Results] = []

    def run() -> Results:
        if not kept:
            kept.append(forward())
        inputs_of_graph = inputs.tensors if len(kept[0]) > 1 else inputs.joint
        upstream = [torch.ones_like(out) for out in kept[0]]
        return torch.autograd.grad(kept[0], inputs_of_graph, upstream, retain_graph=True)

    return run


def _difference(results: Mapping[str, Any]) -> float | None:
    """Largest relative difference of what the two back ends gave, in norm."""
    both = [results[variant] for variant in WINDOWS.values() if variant in results]
    if len(both) < 2:
        return None
    return max(float((a.float() - b.float()).norm() / b.float().norm()) for a, b in zip(*both, strict=True))
