"""`uhr eval experiment`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uhr.base import console
from uhr.base.console import printed
from uhr.base.paths import local
from uhr.train.evaluate.options import Json


def experiment(
    context: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(parser=local("FILE"), metavar="FILE", help="YAML: arms, training seeds, protocol."),
    ],
    out: Annotated[
        Path,
        typer.Option(parser=local("--out"), metavar="DIR", help="All results; the same command resumes."),
    ],
    only_plan: Annotated[
        bool, typer.Option("--plan", help="Print the command and the cost of every step, and stop.")
    ] = False,
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="GPU", help="Estimate time for this GPU: h100, rtx-4090, ..."),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            "--device",
            "--devices",
            help="auto, cpu, cuda, cuda:1. Several, such as cuda:0,cuda:1, run as many arms at once.",
        ),
    ] = "auto",
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that generate and score, each with the models. 0: this one.")
    ] = 1,
    to: Annotated[
        str | None, typer.Option("--to", metavar="latex|csv|md", help="Print the results in this form.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train, generate and score several arms with several training seeds, and compare them.

    Each step is a command of its own. Intervals separate prompts from training seeds; unequal budgets are
    marked. docs/evaluation.md has the file.
    """
    from uhr.train.evaluate import protocol
    from uhr.train.evaluate.compare.tables import check_form
    from uhr.train.evaluate.experiments import tables
    from uhr.train.evaluate.experiments.commands import Machine
    from uhr.train.evaluate.experiments.file import read
    from uhr.train.evaluate.experiments.run import ExperimentJob, plan, run
    from uhr.train.evaluate.prompts import read_items

    check_form(to)
    found = read(file)
    loaded = protocol.load(found.protocol, list(found.protocol_set))
    items = read_items(loaded, None if found.prompts is None else Path(found.prompts), found.first)
    job = ExperimentJob(found, loaded.protocol, items, out, Machine(device, workers), on)
    job.check()
    planned = plan(job)
    if only_plan:
        console.emit(planned, as_json, tables.print_plan)
        return
    quiet = as_json or to is not None
    with printed(quiet):
        tables.print_plan(planned)
    facts = run(job, context.obj, quiet)
    if to is not None:
        print(tables.render(facts, to), end="")
        return
    console.emit(facts, as_json, lambda facts: tables.print_results(facts, out))
