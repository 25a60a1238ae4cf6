"""The table of docs/gpus.md: a command for each GPU, made from plans.

`python -m uhr.models.estimate.table` prints it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from functools import cache

from uhr.base.formatting import duration, gibibytes
from uhr.models.estimate.cost import CostEstimate
from uhr.models.estimate.devices import device
from uhr.models.estimate.plan import plan
from uhr.models.generate.request import Item, Request, parse_size
from uhr.models.specs.registry import get

MODEL = "flux1-dev"

ROWS: Sequence[tuple[str, str]] = (
    ("rtx-4070", "patch-cascade --size 4096x4096"),
    ("rtx-4090", "patch-cascade --size 4096x4096"),
    ("rtx-4090", "ultragen --size 4096x4096"),
    ("l40s", "patch-cascade --size 8192x8192"),
    ("l40s", "ultragen --size 4096x4096"),
    ("h100", "ultragen --size 4096x4096"),
    ("h100", "ultragen --size 8192x8192"),
)
"""A GPU, and the arguments of `uhr sample`; the plan adds the flags that make it fit."""


@cache
def fastest(gpu: str, call: str) -> CostEstimate:
    """Return the fastest estimate that fits the GPU."""
    sampler, *rest = shlex.split(call)
    options = dict(zip(rest[::2], rest[1::2], strict=True))
    request = Request(sampler=sampler, model=MODEL, size=parse_size(options["--size"]))
    estimate = plan(request, Item(prompt="a lake"), gpu).fastest()
    assert estimate is not None, f"nothing makes {call} fit {gpu}"
    return estimate


def command(gpu: str, call: str) -> str:
    """Return the whole command."""
    sampler, _, rest = call.partition(" ")
    placement = fastest(gpu, call).placement
    flags = f" {placement.flags}" if placement.offload or placement.quantize else ""
    return f'uhr sample {sampler} --model {get(MODEL).hub_id} {rest}{flags} --prompt "a lake" --out lake.png'


def table() -> str:
    """Return the table as Markdown."""
    lines = ["| GPU | command | memory | of the host | time |", "|--|--|--|--|--|"]
    for gpu, call in ROWS:
        estimate, card = fastest(gpu, call), device(gpu)
        title = f"{card.sold} GB ({re.sub(' [0-9]+GB', '', card.title)})"
        host = gibibytes(estimate.host) if estimate.host else "-"
        cells = (
            title,
            f"`{command(gpu, call)}`",
            gibibytes(estimate.peak.total),
            host,
            duration(estimate.total),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
