"""One call of the whole transformer: dense, and in UltraGen's windows with and without a cached guide."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch._dynamo

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.report import Row
from benchmarks.gpu.shapes import Shape
from uhr.models.attention.call import AttentionCalls, Windows
from uhr.models.attention.counts import pairs
from uhr.models.attention.flex import BlockMasks
from uhr.models.attention.guide import Guide
from uhr.models.attention.window_rules import WindowRules
from uhr.models.ops import latents
from uhr.models.surgery import base as surgery

DENSE = "dense"
CACHED = "windows, guide cached"
EXACT = "windows, guide in every call"


def run(bench: Bench) -> None:
    """A row for each size and variant; with compiled blocks after that, if requested."""
    masks, transformer = BlockMasks(), bench.models.transformer
    with torch.no_grad(), surgery.temporarily(transformer, AttentionCalls()):
        for suffix in ["", ", blocks compiled"] if bench.compiled else [""]:
            with blocks(transformer, compiled=bool(suffix)):
                rates: dict[str, float] = {}
                for size in bench.sizes:
                    forget(compiled=bool(suffix))
                    _size(bench, size, suffix, masks, rates)


@contextmanager
def blocks(transformer: Any, compiled: bool) -> Generator[None]:
    """The transformer with its blocks compiled for the length of a `with` block, if so.

    Each size, variant and sampler is a kernel of its own: what was compiled before is thrown away (call
    `forget` between them), and torch may make as many as it takes; at its usual 8 it goes on uncompiled.
    """
    if not compiled:
        yield
        return
    parts = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    for part in parts:
        part.compile(dynamic=False)
    try:
        with torch._dynamo.config.patch(recompile_limit=64):
            yield
    finally:
        for part in parts:
            part._compiled_call_impl = None


def forget(compiled: bool) -> None:
    """Throw away what was compiled, if anything is."""
    if compiled:
        torch.compiler.reset()


def _size(bench: Bench, size: str, suffix: str, masks: BlockMasks, rates: dict[str, float]) -> None:
    runs: dict[str, Callable[[], object]] = {}
    flops, first, peaks = {}, {}, {}
    for variant in (DENSE, CACHED, EXACT):
        flops[variant] = call_flops(bench.shape, size, variant)
        seconds = bench.judged(flops[variant], rates.get(variant)) * (bench.rounds + 1)
        if bench.left_out("step", "one call", size, variant + suffix, seconds):
            continue
        run = one_call(bench, size, variant, masks)

        def warm(variant: str = variant, run: Callable[[], object] = run) -> bool:
            bench.clock.clear()
            first[variant] = bench.clock.seconds(run)
            # what made kernels and filled caches is over
            bench.clock.clear()
            run()
            peaks[variant] = bench.clock.peak()
            return True

        if bench.attempt("step", "one call", size, variant + suffix, warm):
            runs[variant] = run
    best = bench.clock.best(runs, bench.rounds)
    for variant, seconds in best.items():
        rates[variant] = flops[variant] / seconds
        times = best[DENSE] / seconds if DENSE in best else None
        how = f"best of {bench.rounds}; first {first[variant]:.3g} s"
        rate = rates[variant] / 1e12
        bench.table.add(
            Row("step", "one call", size, variant + suffix, seconds, how, times, rate, peaks[variant])
        )
    del runs
    bench.clock.clear()


def call_flops(shape: Shape, size: str, variant: str) -> float:
    """Operations of one call."""
    layout, exact = shape.layout(size), variant == EXACT
    counted = pairs(layout, WindowRules(), shape.text)
    tokens = shape.text + layout.tokens
    if variant == DENSE:
        return shape.call_flops(tokens, counted.dense)
    return shape.call_flops(
        tokens + exact * layout.guide_tokens, counted.total - (0 if exact else counted.guide)
    )


def one_call(bench: Bench, size: str, variant: str, masks: BlockMasks | None = None) -> Callable[[], object]:
    """One call on random tokens; `Windows` of its own, so that each variant has a cache of its own."""
    shape, layout, transformer = bench.shape, bench.shape.layout(size), bench.models.transformer
    draw, prompt = torch.Generator(shape.device).manual_seed(3), bench.models.prompt()
    place: dict[str, Any] = {"generator": draw, "device": shape.device, "dtype": shape.dtype}
    channels = transformer.config.in_channels
    image = torch.randn(1, layout.tokens, channels, **place)
    attention: dict[str, Any] = {}
    if variant != DENSE:
        guide = Guide(torch.randn(1, layout.guide_tokens, channels, **place), cached=variant == CACHED)
        attention["attention"] = Windows(layout, WindowRules(), guide, masks=masks or BlockMasks())
    level = torch.full((1,), 0.5, device=shape.device)
    given = {
        "hidden_states": image,
        "timestep": level,
        "guidance": torch.full((1,), 3.5, device=shape.device),
        "pooled_projections": prompt["pooled_prompt_embeds"],
        "encoder_hidden_states": prompt["prompt_embeds"],
        "txt_ids": latents.text_ids(shape.text, shape.device),
        "img_ids": latents.image_ids(layout.height, layout.width, shape.device),
        "return_dict": False,
    }
    return lambda: transformer(**given, joint_attention_kwargs=dict(attention))
