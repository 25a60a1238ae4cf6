"""Encoding and decoding of a whole image by exact tiling, as the samplers do it, and the middle attention.

That attention is one head of 512 channels over every latent: two thirds of a large image's work, by a fused
kernel that was not made for so wide a head. `in_blocks` is the other variant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.report import Row
from uhr.models.surgery import base as surgery
from uhr.models.vae.attention import in_blocks, scaled_dot_product
from uhr.models.vae.tiled import ExactTiling, Part

QUERIES = 65536
"""Queries that are timed: all take minutes at 8K."""

VARIANTS: dict[str, Callable[..., torch.Tensor]] = {"fused kernel": scaled_dot_product, "blocks": in_blocks}


def run(bench: Bench) -> None:
    """A row for each size and direction, and for each variant of attention."""
    vae, rates = bench.models.vae, dict[str, float]()
    with torch.no_grad(), surgery.temporarily(vae, tiling := ExactTiling()):
        for size in bench.sizes:
            _attention(bench, size, rates)
            for part in get_args(Part):
                _whole(bench, vae, tiling, size, part, rates)


def _whole(
    bench: Bench, vae: Any, tiling: ExactTiling, size: str, part: Part, rates: dict[str, float]
) -> None:
    shape, variant = bench.shape, "exact tiling"
    side = shape.side(size) // (1 if part == "encode" else shape.spec.vae_factor)
    flops = tiling.peak_and_flops(vae, part, side, side)[1]
    if bench.left_out("vae", part, size, variant, 2 * bench.judged(flops, rates.get(part))):
        return
    channels = 3 if part == "encode" else vae.config.latent_channels
    given = torch.rand(1, channels, side, side, device=shape.device, dtype=shape.dtype) * 2 - 1
    act = vae.encode if part == "encode" else vae.decode

    def measured() -> Row:
        first = bench.clock.seconds(lambda: act(given))
        bench.clock.clear()
        second = bench.clock.seconds(lambda: act(given))
        rates[part] = flops / second
        how = f"second run; first {first:.3g} s"
        return Row(
            "vae", part, size, variant, second, how, tflops=flops / second / 1e12, peak=bench.clock.peak()
        )

    row = bench.attempt("vae", part, size, variant, measured)
    if row is not None:
        bench.table.add(row)


def _attention(bench: Bench, size: str, rates: dict[str, float]) -> None:
    shape, draw = bench.shape, torch.Generator(bench.shape.device).manual_seed(5)
    tokens, width = (shape.side(size) // shape.spec.vae_factor) ** 2, shape.vae["block_out_channels"][-1]
    queries = min(QUERIES, tokens)
    flops = 4.0 * queries * tokens * width
    place: dict[str, Any] = {"device": shape.device, "dtype": shape.dtype, "generator": draw}
    query, key, value = (torch.randn(1, 1, count, width, **place) for count in (queries, tokens, tokens))
    times, results = {}, {}
    for variant, attend in VARIANTS.items():
        if bench.left_out("vae", "attention", size, variant, 3 * bench.judged(flops, rates.get(variant))):
            continue

        def measured(variant: str = variant, attend: Callable[..., torch.Tensor] = attend) -> Row:
            bench.clock.clear()
            results[variant] = attend(query, key, value)
            seconds = times[variant] = min(
                bench.clock.seconds(lambda: attend(query, key, value)) for _ in (0, 1)
            )
            rates[variant] = flops / seconds
            other = times.get("fused kernel")
            return Row(
                "vae",
                "attention",
                size,
                variant,
                seconds,
                f"best of 2; {queries:,} of {tokens:,} queries",
                None if other is None else other / seconds,
                flops / seconds / 1e12,
                bench.clock.peak(),
                error=_difference(*results.values()) if len(results) == 2 else None,
            )

        row = bench.attempt("vae", "attention", size, variant, measured)
        if row is not None:
            bench.table.add(row)


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())
