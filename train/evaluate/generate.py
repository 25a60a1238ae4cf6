"""Generates the images of a protocol, by the code of `uhr sample --prompts`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from uhr.base.errors import UserError
from uhr.base.run_folder import free_name
from uhr.models.generate.request import Item, Request
from uhr.runtime.pool import Pool
from uhr.train.evaluate.prompts import EvalItem
from uhr.train.generate.items import Entry
from uhr.train.generate.run import SetJob, SetResult
from uhr.train.generate.run import generate as generate_set
from uhr.train.generate.workers import device_of, runner_of, started_early


def generate(request: Request, items: Sequence[EvalItem], out: Path, pool: Pool) -> SetResult:
    """Generate the images of an evaluation into the folder `out`, or what is missing of them.

    `request` has no size: each item has its own. Raises UserError as `uhr.train.generate.run.generate`, and
    if the request sets what the protocol decides.
    """
    if request.size is not None or request.scale is not None:
        raise UserError(
            "the protocol decides the size of its images", "change it with --set size=WIDTHxHEIGHT"
        )
    entries = [
        Entry(
            Item(prompt=item.prompt, name=item.name, seed=item.seed, size=item.size),
            f"prompt {item.prompt_index}",
        )
        for item in items
    ]
    runner = runner_of(pool, device_of(request))
    with started_early(runner, len(entries), str(out)):
        job = SetJob(
            request=request,
            entries=entries,
            out=str(out),
            other_out=lambda taken: f"use --out {shlex.quote(free_name(taken, lambda n: Path(n).exists()))}",
            runner=runner,
            costs=True,
        )
        return generate_set(job)
