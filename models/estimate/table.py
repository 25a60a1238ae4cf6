"""Which command for which GPU: the table of docs/gpus.md, made from plans.

`python -m uhr.models.estimate.table` prints it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from functools import cache

from uhr.models.estimate.devices import device
from uhr.models.estimate.plan import plan
from uhr.models.estimate.plan_text import duration, gib
from uhr.models.estimate.price import Price
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
"""A GPU, and what is behind `uhr sample`; how it fits is what the plan says."""


@cache
def fastest(gpu: str, call: str) -> Price:
    """Of all ways that fit the GPU the one that takes least time."""
    sampler, *rest = shlex.split(call)
    told = dict(zip(rest[::2], rest[1::2], strict=True))
    request = Request(sampler=sampler, model=MODEL, size=parse_size(told["--size"]))
    price = plan(request, Item(prompt="a lake"), gpu).fastest()
    assert price is not None, f"nothing makes {call} fit {gpu}"
    return price


def command(gpu: str, call: str) -> str:
    """The whole command."""
    sampler, _, rest = call.partition(" ")
    way = fastest(gpu, call).way
    flags = f" {way.flags}" if way.offload or way.quantize else ""
    return f'uhr sample {sampler} --model {get(MODEL).hub_id} {rest}{flags} --prompt "a lake" --out lake.png'


def table() -> str:
    """Markdown."""
    lines = ["| GPU | command | memory | of the host | time |", "|--|--|--|--|--|"]
    for gpu, call in ROWS:
        price, card = fastest(gpu, call), device(gpu)
        title = f"{card.memory >> 30} GB ({re.sub(' [0-9]+GB', '', card.title)})"
        host = gib(price.host) if price.host else "-"
        cells = (title, f"`{command(gpu, call)}`", gib(price.peak.total), host, duration(price.total))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
