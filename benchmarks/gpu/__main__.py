"""Windows and samplers on one large GPU: FLUX.1-dev's shape with random weights, no download.

    python -m benchmarks.gpu --out benchmarks/results/gpu-DATE.md      all of it
    python -m benchmarks.gpu --only samplers --budget 1700 --append    in parts, for queues with a time limit
    python -m benchmarks.gpu --tiny                                    the same code on a CPU, in a minute

Needs torch (2.11 or newer), diffusers with the transformers that its FLUX pipelines import, pydantic, PyYAML,
numpy and Pillow, and nothing else of what this project depends on. Parts:

    attention   one layer: windows against dense flash SDPA, forward and backward
    step        one call of the transformer
    vae         encoding and decoding by exact tiling
    samplers    a 4K image by each sampler, an 8K one by UltraGen

Every row is printed, and written to --out and --json, as soon as it is measured. The exit code is 1 if a
measured value misses its aim, or a measurement fails. On a CPU only the aims given by --aim apply.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from benchmarks.gpu import aims, attention, samplers, step, vae
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.clock import Budget, Clock
from benchmarks.gpu.report import Table, facts
from benchmarks.gpu.shapes import SIZES, Models, flux1_dev, tiny
from uhr.base.console import say
from uhr.base.errors import UserError, unknown
from uhr.models.samplers import names_for

PARTS = {"attention": attention.run, "step": step.run, "vae": vae.run, "samplers": samplers.run}


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark and return the exit code."""
    options = _parser().parse_args(arguments)
    parts, sizes = _names(options.only, PARTS, "part"), _names(options.sizes, SIZES, "size")
    if not options.tiny and not torch.cuda.is_available():
        raise UserError("torch sees no GPU here", "run the benchmark's code on a CPU with --tiny")
    shape = tiny() if options.tiny else flux1_dev()
    chosen_aims = aims.chosen(options.aim, on_gpu=not options.tiny)
    table = Table(facts(shape, _command(arguments)), options.out, options.json)
    table.ending = lambda measured: aims.conclusion(measured, chosen_aims)
    limit = options.seconds or (1.0 if options.tiny else 120.0)
    bench = Bench(
        shape,
        Models(shape),
        sizes,
        table,
        Clock(shape.device),
        Budget(options.budget),
        limit,
        rounds=2 if options.tiny else 5,
        samplers=_names(options.samplers, names_for(shape.spec.family), "sampler"),
        compiled=options.compile,
    )
    if options.append:
        table.resume()
    # garbage is collected before each measurement: what exists by now need not be searched
    gc.freeze()
    table.begin()
    for part in parts:
        PARTS[part](bench)
    table.write()
    say()
    for line in aims.conclusion(table, chosen_aims):
        say(line)
    return 0 if aims.everything_holds(table, chosen_aims) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tiny", action="store_true", help="tiny shapes in float32 on the CPU")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, comma-separated")
    parser.add_argument("--sizes", default=",".join(SIZES), help="sizes, comma-separated")
    parser.add_argument("--samplers", default="", help="samplers to measure, comma-separated; default: all")
    parser.add_argument("--out", type=Path, help="Markdown file for the table")
    parser.add_argument("--json", type=Path, help="JSON file for its numbers")
    parser.add_argument("--append", action="store_true", help="add to the rows in the file of --json")
    parser.add_argument("--budget", type=float, default=3600.0, help="seconds for the whole run")
    parser.add_argument(
        "--seconds",
        type=float,
        help="most seconds for one image (120, with --tiny 1); a longer one is extrapolated",
    )
    parser.add_argument("--compile", action="store_true", help="measure calls with compiled blocks, too")
    parser.add_argument(
        "--aim", action="append", default=[], metavar="NAME=LIMIT", help="replace the bound of an aim"
    )
    return parser


def _names(text: str, known: Collection[str], kind: str) -> list[str]:
    """Split names at commas, in the order of `known`. Raises UserError for an unknown one."""
    given = [name for name in text.split(",") if name]
    for name in given:
        if name not in known:
            raise unknown(kind, name, known)
    return [name for name in known if name in given]


def _command(arguments: Sequence[str]) -> str:
    return " ".join(["python -m benchmarks.gpu", *arguments])


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"benchmarks.gpu: {error}")
