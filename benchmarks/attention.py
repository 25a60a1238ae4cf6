"""Hierarchical local attention against dense attention as the image grows: time and peak memory in one run.

One layer with one head of 128 channels in float32, 512 text tokens, box neighbourhood with 8 neighbours, a
guide of a quarter of the side; text, image and guide rows all counted. Dense is torch's own flash SDPA over
text and image. Seconds are one thread's own (CPU time: what else the machine does changes neither side), the
methods interleaved, the best of three. A peak is the resident memory of a process of its own above what it
held before its inputs were made: inputs, output and workspace.

    python -m benchmarks.attention
"""

from __future__ import annotations

import gc
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from uhr.base import console

SIDES = (64, 128, 256)
"""Image tokens a side: 1K, 2K, 4K of FLUX."""

TEXT, HEAD_DIM, ROUNDS = 512, 128, 3
METHODS = ("windows", "dense")


def main() -> None:
    """Print the table and whether each claim holds; exit code 1 if one does not."""
    times = _times()
    peaks = {(method, side): _peak_in_process(method, side) for side in SIDES for method in METHODS}
    counted = {side: _counted(side) for side in SIDES}
    ratio = {side: times["dense", side] / times["windows", side] for side in SIDES}
    head = (
        "image tokens",
        "windows s",
        "dense s",
        "times faster",
        "counted pairs",
        "windows MiB",
        "dense MiB",
    )
    console.table(
        head,
        [
            [
                side**2,
                round(times["windows", side], 4),
                round(times["dense", side], 4),
                round(ratio[side], 2),
                round(counted[side], 2),
                *(round(peaks[method, side] / 2**20, 1) for method in METHODS),
            ]
            for side in SIDES
        ],
    )
    grows = {
        "windows, time": _exponent([times["windows", side] for side in SIDES]),
        "windows, memory": _exponent([peaks["windows", side] for side in SIDES]),
        "dense, time": _exponent([times["dense", side] for side in SIDES]),
        "windows, counted pairs": _exponent([_window_pairs(side) for side in SIDES]),
    }
    console.say()
    console.table(("grows as N to the", "power"), [[name, round(power, 3)] for name, power in grows.items()])
    console.say()
    error = _error()
    claims = {
        "time of the windows grows with N to the 1.1 at most": grows["windows, time"] <= 1.1,
        "memory of the windows grows with N to the 1.05 at most": grows["windows, memory"] <= 1.05,
        "4.0 times faster than dense at 16,384 tokens": ratio[128] >= 4.0,
        "14.5 times faster than dense at 65,536 tokens": ratio[256] >= 14.5,
        f"equal to dense attention under the mask to 1e-6 (off by {error:.1e})": error < 1e-6,
    }
    for claim, holds in claims.items():
        console.say(f"{'holds' if holds else 'FAILS'}  {claim}")
    sys.exit(0 if all(claims.values()) else 1)


def _exponent(values: Sequence[float]) -> float:
    """Least-squares slope of log(value) over log(image tokens)."""
    xs, ys = [math.log(side**2) for side in SIDES], [math.log(value) for value in values]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


def _times() -> dict[tuple[str, int], float]:
    """Best seconds of each method at each size; all of them once, then all again."""
    import torch

    found: dict[tuple[str, int], float] = {}
    torch.set_num_threads(1)
    with torch.inference_mode(), console.progress("attention", ROUNDS * len(SIDES) * len(METHODS)) as advance:
        _warm()
        for _ in range(ROUNDS):
            for side in SIDES:
                for method in METHODS:
                    run = _case(method, side)
                    start = time.process_time()
                    run()
                    took = time.process_time() - start
                    found[method, side] = min(took, found.get((method, side), math.inf))
                    advance()
    return found


def _case(method: str, side: int) -> Callable[[], object]:
    """One layer's attention on random tensors: [1, tokens, 1 head, 128]."""
    import torch

    from uhr.models.attention import gathered
    from uhr.models.attention.layout import WindowLayout
    from uhr.models.attention.window_rules import WindowRules

    draw = torch.Generator().manual_seed(0)
    layout, rules = WindowLayout(side, side), WindowRules()
    joint = [torch.randn(1, TEXT + layout.tokens, 1, HEAD_DIM, generator=draw) for _ in range(3)]
    if method == "dense":
        return lambda: gathered.dense(*joint)
    query, *guide = [torch.randn(1, layout.guide_tokens, 1, HEAD_DIM, generator=draw) for _ in range(3)]
    keys, text = (guide[0], guide[1]), (joint[1][:, :TEXT], joint[2][:, :TEXT])

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        return (
            gathered.attend(joint[0], joint[1], joint[2], keys, layout, rules),
            gathered.attend_guide(query, keys, text, layout, rules),
        )

    return run


def _warm() -> None:
    for method in METHODS:
        _case(method, 32)()


def _counted(side: int) -> float:
    from uhr.models.attention.counts import pairs
    from uhr.models.attention.layout import WindowLayout
    from uhr.models.attention.window_rules import WindowRules

    return pairs(WindowLayout(side, side), WindowRules(), TEXT).ratio


def _window_pairs(side: int) -> float:
    return (TEXT + side**2) ** 2 / _counted(side)


def _error() -> float:
    """Largest difference from dense attention under the mask, at 1,024 image tokens."""
    import torch
    import torch.nn.functional as F

    from uhr.models.attention import gathered
    from uhr.models.attention.layout import WindowLayout
    from uhr.models.attention.mask import dense_mask
    from uhr.models.attention.window_rules import WindowRules

    layout, rules = WindowLayout(32, 32), WindowRules()
    lengths = [TEXT, layout.tokens, layout.guide_tokens]
    draw = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, sum(lengths), 1, HEAD_DIM, generator=draw)
    mask = dense_mask(layout, rules, TEXT, guide=True)
    streams = (x.transpose(1, 2) for x in (query, key, value))
    dense = F.scaled_dot_product_attention(*streams, attn_mask=mask).transpose(1, 2)
    end = TEXT + layout.tokens
    guide = (key[:, end:], value[:, end:])
    ours = gathered.attend(query[:, :end], key[:, :end], value[:, :end], guide, layout, rules)
    return float((ours - dense[:, :end]).abs().max())


def _peak_in_process(method: str, side: int) -> int:
    command = [sys.executable, "-m", "benchmarks.attention", method, str(side)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{method} at {side**2} tokens: exit code {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _peak(method: str, side: int) -> int:
    """Bytes that this process holds at most for one case, above what it held before."""
    import torch

    torch.set_num_threads(1)
    with torch.inference_mode():
        _warm()
        gc.collect()
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
        result = _case(method, side)()
        peak = _resident("VmHWM")
    assert result is not None
    return peak - before


def _resident(line: str) -> int:
    for entry in Path("/proc/self/status").read_text().splitlines():
        if entry.startswith(f"{line}:"):
            return int(entry.split()[1]) * 1024
    raise AssertionError(f"no {line} in /proc/self/status")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(_peak(sys.argv[1], int(sys.argv[2])))
    else:
        main()
