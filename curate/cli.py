"""`uhr curate`: images in, manifest out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uhr.base import console
from uhr.base.paths import local

app = typer.Typer(no_args_is_help=True, help="Images in, manifest out: annotate every image, decide by rule.")

Json = Annotated[bool, typer.Option("--json", help="Answer as JSON.")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change the pipeline.")]


@app.command()
def run(
    pipeline: Annotated[str, typer.Argument(metavar="PIPELINE", help="A preset's name or a YAML file.")],
    source: Annotated[
        Path,
        typer.Option(
            parser=local("--source"),
            metavar="DIR",
            help="Folder of images; every file below it becomes one row.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            parser=local("--out"),
            metavar="DIR",
            help="Folder of the manifest. The same command goes on where it stopped.",
        ),
    ],
    engine: Annotated[str, typer.Option(help="ray: Ray Data; local: worker processes of our own.")] = "ray",
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Worker processes; one per core by default. 0: in this process, with no protection: "
            "an image that crashes its decoder ends the run.",
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="A running Ray cluster, which sees SOURCE and OUT under the same paths."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N files.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, and stop.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="A rule that cannot be evaluated is an error.")
    ] = False,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Curate a folder: every file becomes one row, kept, rejected (with the rule) or failed (with the
    error).
    """
    from uhr.curate import run as rooms
    from uhr.curate.config import load
    from uhr.curate.planning.plan import Plan
    from uhr.curate.show import print_outcome, print_plan
    from uhr.runtime.pool import Pool

    pool = Pool.of(engine, workers, address)
    plan = Plan.of(load(pipeline, sets or []), strict)
    order = rooms.Order(plan, source, out, pool, limit)
    if dry_run:
        listing = rooms.survey(order)
        rows = listing.items.num_rows
        facts = {**plan.facts(), "inputs": rows, "units": -(-rows // plan.unit_size(rows))}
        console.emit(facts, as_json, lambda _: print_plan(plan, listing))
        return
    words = ["curate", "run", pipeline, "--source", str(source), "--engine", engine]
    words += [word for item in sets or [] for word in ("--set", item)]
    words += [] if limit is None else ["--limit", str(limit)]
    outcome = rooms.run(order, lambda taken: console.command(*words, "--out", _free(taken)))
    console.emit(outcome.facts(), as_json, lambda _: print_outcome(outcome))


def _free(taken: Path) -> Path:
    """The first of OUT-2, OUT-3, ... that does not exist."""
    number = 2
    while (free := taken.with_name(f"{taken.name}-{number}")).exists():
        number += 1
    return free


@app.command()
def status(
    out: Annotated[Path, typer.Argument(parser=local("OUT"), metavar="OUT", help="Folder of a run.")],
    as_json: Json = False,
) -> None:
    """How far a run has come, also while it runs."""
    from uhr.curate.show import print_status
    from uhr.curate.status import status_of

    console.emit(status_of(out), as_json, print_status)


@app.command()
def explain(
    out: Annotated[Path, typer.Argument(parser=local("OUT"), metavar="OUT", help="Folder of a manifest.")],
    sample: Annotated[
        str, typer.Argument(metavar="SAMPLE", help="A sample id, the beginning of one, or a uri.")
    ],
    as_json: Json = False,
) -> None:
    """Why an image was kept or not: every column by stage, every rule with the values it looked at."""
    from uhr.curate.explain import explain as tell
    from uhr.curate.show import print_explanation

    console.emit(tell(out, sample), as_json, print_explanation)


@app.command()
def stages(as_json: Json = False) -> None:
    """What can be computed of an image: columns, what they need, packages and their licences."""
    from uhr.curate.show import print_stages
    from uhr.curate.stages.catalogue import all_stages

    console.emit(all_stages(), as_json, print_stages)


@app.command()
def show(
    pipeline: Annotated[
        str | None,
        typer.Argument(
            metavar="PIPELINE", help="A preset's name or a YAML file. Without it: the list of presets."
        ),
    ] = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """The commented YAML of a preset; of a file, or with --set, the whole pipeline that comes of it."""
    from uhr.base.config import parse_yaml
    from uhr.curate.config import is_file, preset_names, preset_text

    if pipeline is not None and (sets or is_file(pipeline)):
        _show_whole(pipeline, sets or [], as_json)
        return
    if pipeline is not None:
        text = preset_text(pipeline)
        console.emit(parse_yaml(text, pipeline), as_json, lambda _: console.say(text.rstrip()))
        return
    presets = [
        {"preset": n, "description": parse_yaml(preset_text(n), n)["description"]} for n in preset_names()
    ]
    console.emit(
        presets, as_json, lambda rows: console.table(["preset", "description"], [[*r.values()] for r in rows])
    )


def _show_whole(pipeline: str, sets: list[str], as_json: bool) -> None:
    """Every key of a pipeline, with the preset, the file and the command line put together."""
    import yaml

    from uhr.curate.config import load
    from uhr.curate.planning.placement import whole_tree

    tree = whole_tree(load(pipeline, sets))
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=10_000)
    console.emit(tree, as_json, lambda _: console.say(text.rstrip()))
