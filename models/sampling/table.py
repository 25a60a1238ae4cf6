"""Which command for which GPU: the README's table, made of plans.

`python -m uhr.models.sampling.table` prints it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from uhr.models.costs.devices import device
from uhr.models.registry import get
from uhr.models.sampling.plan import Plan, plan
from uhr.models.sampling.plan_text import duration, gib
from uhr.models.sampling.request import Item, Request, parse_size

MODEL = "flux1-dev"

ROWS: Sequence[tuple[str, str]] = (
    ("rtx-4070", "patch-cascade --size 4096x4096 --offload model --quantize nf4"),
    ("rtx-4090", "patch-cascade --size 4096x4096 --quantize nf4"),
    ("rtx-4090", "ultragen --size 4096x4096 --offload model --quantize nf4"),
    ("l40s", "patch-cascade --size 8192x8192"),
    ("l40s", "ultragen --size 4096x4096"),
    ("h100", "ultragen --size 4096x4096"),
    ("h100", "ultragen --size 8192x8192 --offload model"),
)
"""A GPU, and what is behind `uhr sample`."""


def command(call: str) -> str:
    """The whole command."""
    sampler, _, rest = call.partition(" ")
    return f'uhr sample {sampler} --model {get(MODEL).hub_id} {rest} --prompt "a lake" --out lake.png'


def planned(gpu: str, call: str) -> Plan:
    sampler, *rest = shlex.split(call)
    told = dict(zip(rest[::2], rest[1::2], strict=True))
    request = Request(
        sampler=sampler,
        model=MODEL,
        size=parse_size(told["--size"]),
        offload=told.get("--offload"),
        quantize=told.get("--quantize"),
    )
    return plan(request, Item(prompt="a lake"), gpu)


def table() -> str:
    """Markdown."""
    lines = ["| GPU | command | memory | time |", "|--|--|--|--|"]
    for gpu, call in ROWS:
        price, card = planned(gpu, call).asked, device(gpu)
        title = f"{card.memory >> 30} GB ({re.sub(' [0-9]+GB', '', card.title)})"
        lines.append(f"| {title} | `{command(call)}` | {gib(price.peak.total)} | {duration(price.total)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
