"""Encoding and decoding of a whole picture by exact tiling, as the samplers do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.report import Row
from uhr.models import surgery
from uhr.models.vae.tiled import ExactTiling, Part


def run(bench: Bench) -> None:
    """A row for each size and direction."""
    vae, rates = bench.models.vae, {}
    with torch.no_grad(), surgery.temporarily(vae, tiling := ExactTiling()):
        for size in bench.sizes:
            for part in ("encode", "decode"):
                _one(bench, vae, tiling, size, part, rates)


def _one(bench: Bench, vae: Any, tiling: ExactTiling, size: str, part: Part, rates: dict[str, float]) -> None:
    shape = bench.shape
    side = shape.side(size) // (1 if part == "encode" else shape.spec.vae_factor)
    plan = tiling.plan(vae, part, side, side)
    seconds = bench.judged(plan.flops, rates.get(part)) * 2
    if bench.left_out("vae", part, size, "exact tiling", seconds):
        return
    channels = 3 if part == "encode" else vae.config.latent_channels
    given = torch.rand(1, channels, side, side, device=shape.device, dtype=shape.dtype) * 2 - 1
    work: Callable[[], object] = (
        (lambda: vae.encode(given)) if part == "encode" else (lambda: vae.decode(given))
    )

    def measured() -> tuple[float, float, float | None]:
        first = bench.clock.seconds(work)
        bench.clock.clear()
        best = bench.clock.best({part: work}, 1)[part]
        return first, best, bench.clock.peak()

    found = bench.attempt("vae", part, size, "exact tiling", measured)
    if found is None:
        return
    first, best, peak = found
    rates[part] = plan.flops / best
    row = Row("vae", part, size, "exact tiling", best, f"second run; first {first:.3g} s")
    bench.table.add(_with(row, plan.flops / best / 1e12, peak))


def _with(row: Row, tflops: float, peak: float | None) -> Row:
    from dataclasses import replace

    return replace(row, tflops=tflops, peak=peak)
