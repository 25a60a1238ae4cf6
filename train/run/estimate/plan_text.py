"""Prints the plan of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from uhr.base.console import say, table
from uhr.base.formatting import duration, gibibytes, human_bytes
from uhr.train.run.estimate.fitting import advice

_STORED = {
    "latents_per_picture": "latents per image",
    "guide_per_picture": "its guide",
    "text_per_caption": "text per caption",
    "pixels_per_picture": "pixels per image",
    "encoded_data": "encoded data",
}
"""How people read the keys of the storage."""


_MEMORY = {"constant": "constant part of the adapter", "host": "on the host, not in the total"}
"""How people read those keys of the memory that do not explain themselves."""


_SETS = {
    "data": "name",
    "share of batches": "share",
    "images": "rows",
    "batches per epoch": "batches_per_epoch",
    "epochs": "epochs",
}

_BUCKETS = {
    "data": "data",
    "bucket": "size",
    "images": "rows",
    "batches per epoch": "batches_per_epoch",
    "image tokens": "image_tokens",
    "guide tokens": "guide_tokens",
    "tokens in all": "tokens",
}
"""The columns of the tables, and the values in them."""


def _known(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a table without the columns that have no value in any row."""
    shown = {head: key for head, key in columns.items() if any(row.get(key) for row in rows)}
    table(list(shown), [[row[key] for key in shown.values()] for row in rows])


def _print_other_gpus(plan: Mapping[str, Any]) -> None:
    """Print the GPUs that the plan fits, if it does not fit its own."""
    rows = []
    for choice in plan.get("other_gpus", ()):
        sets = " ".join(f"--set {change}" for change in choice["changes"]) or "the recipe as it is"
        count = f"{choice['workers']} x " if choice["workers"] > 1 else ""
        where = f"{count}{choice['gpu']}"
        rows.append([where, sets, gibibytes(choice["memory"]), duration(choice["seconds"])])
    if rows:
        say("\nother GPUs that it fits:")
        table(["GPUs", "with", "memory of each", "time"], rows)


def print_estimate(plan: dict[str, Any]) -> None:
    """Print what `estimate` returns."""
    base, trainable = plan["parameters"]["base"], plan["parameters"]["trainable"]
    samples = f"{'' if plan['samples_counted'] else 'at most '}{plan['samples']:,} samples"
    say(f"{plan['recipe']} on {plan['model']}: {plan['steps']:,} steps, {samples}")
    say(f"trained: {plan['trained']}")
    linears = plan["parameters"]["linears"]
    total = plan["parameters"]["total"]
    whole = {"transformer": "backbone", "vae": "VAE"}[plan["component"]]
    share = f"{trainable / base:.2%} of the {whole}" + (f", in {linears} linears" if linears else "")
    say(f"trainable {trainable:,} of {total:,} parameters ({share})")
    say(plan["batch"]["text"])
    if plan["average"] is not None:
        say(f"averaged adapter: {plan['average']}")
    for phase in plan["phases"]:
        epochs = f", {phase['epochs']:g} epochs" if phase["epochs"] is not None else ""
        say(f"\nphase {phase['name']}: {phase['steps']:,} steps at {phase['resolution']} px{epochs}")
        if len(phase["data"]) > 1:
            _known(_SETS, phase["data"])
        _known(_BUCKETS, phase["buckets"])
    where = plan["processes"]
    each = f" of each of {where['workers']} processes" if where["workers"] > 1 else ""
    parts = f", weights divided by {where['parts']}" if where["parts"] > 1 else ""
    at = "at the longest sequence" if plan["component"] == "transformer" else "for the largest images"
    say(f"\nestimated memory{each} {at}{parts}:")
    # in the unit of the GPU's memory, with which the reader compares them
    table(
        ["what", "size"],
        [[_MEMORY.get(name, name), gibibytes(size)] for name, size in plan["memory"].items() if size],
    )
    if (gpu := plan.get("gpu")) is not None:
        answer = "yes" if gpu["fits"] else "no"
        has = f"{gibibytes(gpu['memory'])}, of which {gibibytes(gpu['usable'])} usable"
        say(f"fits: {answer}; {gpu['title']} has {has}")
        timed = plan["time"]
        steps = ", ".join(f"{duration(seconds)} a step of {name}" for name, seconds in timed["steps"].items())
        say(f"time by its data sheet: {steps}; {duration(timed['run'])} in all")
        for line in advice(plan):
            say(line)
        _print_other_gpus(plan)
    say("\nstorage:")
    table(
        ["what", "size"],
        [[_STORED.get(name, name), human_bytes(size)] for name, size in plan["storage"].items()],
    )
    for note in plan["notes"]:
        say(f"\nnote: {note}")
