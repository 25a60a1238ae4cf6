"""Exact tiling against the untiled VAE and against diffusers' tiling: time, peak memory, error, in one run.

FLUX.1's VAE at its real widths with random weights, float32, 384 x 384 px with 96 px tiles for diffusers:
the ratio of 4096 to the 1024 px tiles that it takes by default. Each method is a process of its own on one
thread; its peak is the resident memory above what it held once the VAE was loaded, so kernels' workspaces
and what the allocator keeps for later are included (tests/models/vae/test_memory.py counts live tensors).

    python -m benchmarks.vae_tiling
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from uhr.base import console
from uhr.models.specs.registry import get

SIDE, TILE = 384, 96
MEMORY = {"exact, 192 MiB": 192, "exact, 96 MiB": 96}
METHODS = ("untiled", *MEMORY, "diffusers' tiling")
PARTS = ("decode", "encode")
EXACT = 2e-5
PAPER = (("decode", 4096), ("decode", 8192), ("encode", 8192))


class Result(NamedTuple):
    part: str
    method: str
    seconds: float
    peak: int
    error: float


def main() -> None:
    """Print two tables and whether each claim holds; exit code 1 if one does not."""
    with tempfile.TemporaryDirectory() as folder:
        results = [_measure(part, method, Path(folder)) for part in PARTS for method in METHODS]
    console.table(("part", "method", "CPU seconds", "peak MiB", "largest error"), results)
    console.say()
    console.table(("on paper", "dtype", "memory", "peak GiB", "work"), list(_on_paper()))
    exact = [result.error for result in results if result.method in MEMORY]
    theirs = [result.error for result in results if result.method == "diffusers' tiling"]
    found = {(result.part, result.method): result for result in results}
    claims = {
        f"exact tiling is off by at most {EXACT}": max(exact) <= EXACT,
        "diffusers' tiling is off by a thousand times that at least": min(theirs) >= 1000 * EXACT,
        "exact tiling in 96 MiB decodes in a third of the untiled run's memory": (
            found["decode", "exact, 96 MiB"].peak <= found["decode", "untiled"].peak / 3
        ),
        "exact tiling in 192 MiB takes at most a quarter more time than the untiled run": all(
            found[part, "exact, 192 MiB"].seconds <= 1.25 * found[part, "untiled"].seconds for part in PARTS
        ),
    }
    console.say()
    for claim, holds in claims.items():
        console.say(f"{'holds' if holds else 'FAILS'}  {claim}")
    sys.exit(0 if all(claims.values()) else 1)


def _measure(part: str, method: str, folder: Path) -> Result:
    """One method in a process of its own, against the untiled one that ran before."""
    import numpy as np

    output, truth = (folder / f"{part}-{METHODS.index(name)}.npy" for name in (method, "untiled"))
    command = [sys.executable, "-m", "benchmarks.vae_tiling", part, method, str(output)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{part}, {method}: exit code {done.returncode}\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    error = float(np.abs(np.load(output) - np.load(truth)).max())
    return Result(part, method, round(found["seconds"], 1), round(found["peak"] / 2**20), error)


def _run(part: str, method: str, output: Path) -> None:
    """The work of one process; prints JSON."""
    import numpy as np
    import psutil
    import torch

    from uhr.models.vae.tiled import ExactTiling

    vae = _vae()
    x = _input(part)
    if method in MEMORY:
        ExactTiling(memory=MEMORY[method] << 20).apply(vae)
    elif method != "untiled":
        vae.tile_sample_min_size, vae.tile_latent_min_size = TILE, TILE // 8
        vae.enable_tiling()
    before = psutil.Process().memory_info().rss
    start = time.process_time()
    with torch.no_grad():
        result = vae.decode(x).sample if part == "decode" else vae.encode(x).latent_dist.mean
    seconds = time.process_time() - start
    # Linux counts the high-water mark in KiB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    np.save(output, result.numpy())
    print(json.dumps({"seconds": seconds, "peak": max(0, peak - before)}))


def _vae():
    """FLUX.1's VAE: 84 million parameters, drawn so that signals neither die nor explode."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(**get("flux1-dev").configs["vae"])
    return vae.eval().requires_grad_(False)


def _input(part: str):
    """Latents or an image whose statistics change from place to place, as those of real ones do."""
    import torch

    channels, side = (16, SIDE // 8) if part == "decode" else (3, SIDE)
    noise = torch.randn(1, channels, side, side, generator=torch.Generator().manual_seed(1))
    across = torch.linspace(0.2, 1.5, side)
    return noise * across[:, None] * across.flip(0)[None, :]


def _on_paper():
    """What the plan says of 4K and 8K at the real widths, by the accounting that the tests hold to live
    tensors. Weights are not counted: 0.3 GiB in float32."""
    import torch

    from uhr.models.vae.tiled import ExactTiling

    vae = _vae()
    for dtype in (torch.float32, torch.bfloat16):
        for weight in vae.parameters():
            weight.data = weight.data.to(dtype)
        for part, side in PAPER:
            size = side // 8 if part == "decode" else side
            for memory in ("40GiB", "20GiB", "10GiB"):
                plan = ExactTiling(memory=memory).plan(vae, part, size, size).describe()
                name = str(dtype).removeprefix("torch.")
                yield f"{part} {side}", name, memory, round(plan["peak_bytes"] / 2**30, 1), plan["work"]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _run(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    else:
        main()
