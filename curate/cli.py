"""`uhr curate`: images in, manifest out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from uhr.base import console
from uhr.base.errors import UserError
from uhr.base.paths import anywhere
from uhr.base.run_folder import free_name

app = typer.Typer(no_args_is_help=True, help="Images in, manifest out: measure every image, select by rules.")

Json = Annotated[bool, typer.Option("--json", help="Answer as JSON.")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change the pipeline.")]


@app.command()
def run(
    pipeline: Annotated[str, typer.Argument(metavar="PIPELINE", help="A preset's name or a YAML file.")],
    out: Annotated[
        Path,
        typer.Option(
            parser=anywhere("--out"),
            metavar="DIR",
            help="Folder of the manifest, or s3://bucket/prefix. The same command resumes a run that was "
            "stopped.",
        ),
    ],
    source: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Folder of images, or KIND:PLACE; every file in it becomes one row. "
            "Not needed if the pipeline names its sources.",
        ),
    ] = None,
    engine: Annotated[str, typer.Option(help="ray: Ray; local: uhr's own worker processes.")] = "ray",
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
        typer.Option(
            help="A running Ray cluster whose machines have SOURCE and OUT, if they are folders, at the same "
            "paths."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N files.")] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only N files, drawn at random by --seed.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of --sample: the same files for the same seed.")] = None,
    reuse: Annotated[
        list[Path] | None,
        typer.Option(
            parser=anywhere("--reuse"),
            metavar="M",
            help="A manifest or an unfinished run, or its address: what is measured there is not measured "
            "again.",
        ),
    ] = None,
    retry: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REASON",
            help="Measure rows again that failed for this reason, of an unfinished run or of --reuse.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and what the run will take, and stop.")
    ] = False,
    measure: Annotated[
        int, typer.Option(min=0, metavar="N", help="Files that --dry-run measures, drawn at random.")
    ] = 16,
    materialise: Annotated[
        Literal["rows", "none"],
        typer.Option(
            metavar="WHAT",
            help="rows, or none: of a source manifest:M only the columns that M does not have.",
        ),
    ] = "rows",
    strict: Annotated[
        bool, typer.Option("--strict", help="A rule that cannot be evaluated is an error.")
    ] = False,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Curate a folder: every file becomes one row, kept, rejected (with the rule) or failed (with the
    error).
    """
    from uhr.base.store import ObjectStore
    from uhr.curate.config import fetching, load
    from uhr.curate.estimate import plan_of
    from uhr.curate.in_store import RunInStore
    from uhr.curate.planning.plan import CurationPlan
    from uhr.curate.run.job import CurationRequest, Subset
    from uhr.curate.run.job import run as run_request
    from uhr.curate.show import print_result
    from uhr.curate.sources import source_of
    from uhr.runtime.pool import Pool

    pool = Pool.of(engine, workers, address)
    config = load(pipeline, sets or [])
    images = source_of(source, config.sources, pipeline)
    config = fetching(config, images.obeys) if images.gives_evidence else config
    if sample is not None and limit is not None:
        raise UserError("--limit and --sample are both set", "leave one of them out")
    if seed is not None and sample is None:
        raise UserError("--seed is of --sample", "add --sample N")
    subset = Subset(limit, sample, seed or 0)
    place = out if isinstance(out, str) else None
    options: dict[str, Any] = {"pool": pool, "subset": subset, "reuse": tuple(reuse or ())}
    options |= {"retry": tuple(retry or ()), "by_reference": materialise == "none"}
    if dry_run:
        plan, problem = plan_of(config, strict, images.columns)
        request = CurationRequest(plan, images, Path(out), **options)
        request.check()
        _dry_run(request, measure, problem, as_json)
        return
    plan = CurationPlan.of(config, strict, images.columns)
    request = CurationRequest(plan, images, Path(out), **options)
    arguments = ["curate", "run", pipeline]
    arguments += [] if source is None else ["--source", source]
    arguments += ["--engine", engine]
    chosen = {"address": address, "workers": workers, "limit": limit, "sample": sample, "seed": seed}
    for name, value in chosen.items():
        arguments += [] if value is None else [f"--{name}", str(value)]
    arguments += ["--strict"] if strict else []
    arguments += ["--materialise", "none"] if materialise == "none" else []
    arguments += [argument for item in sets or [] for argument in ("--set", item)]
    arguments += [argument for kind in retry or () for argument in ("--retry", kind)]
    arguments += [argument for path in reuse or () for argument in ("--reuse", str(path))]

    def into_another(taken: Path) -> str:
        free = free_name(str(place or taken), is_taken)
        return "write to another folder: " + console.command(
            *arguments, "--reuse", str(place or taken), "--out", free
        )

    def is_taken(name: str) -> bool:
        return os.path.exists(name) if place is None else bool(ObjectStore(name).names())

    result = (
        run_request(request, into_another) if place is None else RunInStore(place).run(request, into_another)
    )
    console.emit(result.facts(), as_json, lambda _: print_result(result))


def _dry_run(request: Any, measure: int, problem: UserError | None, as_json: bool) -> None:
    """Print the plan of a request, and what the run will take. Raises `problem`, because of which it would
    not start.
    """
    from uhr.curate.estimate import estimate
    from uhr.curate.planning.catalogue import plan_facts
    from uhr.curate.run.job import list_source
    from uhr.curate.show import print_estimate, print_plan

    listing = list_source(request)
    rows = listing.items.num_rows
    facts = {
        **plan_facts(request.plan),
        "inputs": rows,
        "units": -(-rows // request.plan.unit_size(rows)),
        "problem": None if problem is None else str(problem),
    }
    found = estimate(request, listing, measure) if measure else None
    facts["estimate"] = found

    def text(_: Any) -> None:
        print_plan(request.plan, listing)
        if found is not None:
            print_estimate(found)

    console.emit(facts, as_json, text)
    if problem is not None:
        raise problem


@app.command()
def status(
    out: Annotated[
        Path, typer.Argument(parser=anywhere("OUT"), metavar="OUT", help="Folder of a run, or its address.")
    ],
    as_json: Json = False,
) -> None:
    """Show the progress of a run, also while it runs, from any machine that sees OUT."""
    from uhr.curate.in_store import status_in_store
    from uhr.curate.run.status import status_of
    from uhr.curate.show import print_status

    found = status_in_store(out) if isinstance(out, str) else status_of(out)
    console.emit(found, as_json, print_status)


@app.command()
def explain(
    out: Annotated[
        Path, typer.Argument(parser=anywhere("OUT"), metavar="OUT", help="A manifest, or its address.")
    ],
    sample: Annotated[
        str, typer.Argument(metavar="SAMPLE", help="A sample id, the beginning of one, or a uri.")
    ],
    as_json: Json = False,
) -> None:
    """Explain why an image was kept or not: every column by stage, every rule with the values it tested."""
    from uhr.curate.explain import explain as explain_sample
    from uhr.curate.show import print_explanation

    console.emit(explain_sample(out, sample), as_json, print_explanation)


@app.command()
def stages(as_json: Json = False) -> None:
    """List the stages: the columns they add, what they need, packages and their licences."""
    from uhr.curate.planning.catalogue import all_stages
    from uhr.curate.show import print_stages

    console.emit(all_stages(), as_json, print_stages)


@app.command()
def show(
    pipeline: Annotated[
        str | None,
        typer.Argument(
            metavar="PIPELINE", help="A preset's name or a YAML file. Without it: the list of presets."
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE", help="The source whose columns the rules may use, as in `run`: manifest:M."
        ),
    ] = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Show the commented YAML of a preset; for a file, or with --set or --source, the whole resulting
    pipeline.
    """
    from uhr.base.config import parse_yaml
    from uhr.curate.config import is_file, preset_names, preset_text

    if pipeline is None and source is not None:
        raise UserError("--source is set and no pipeline is named", "name a preset or a file")
    if pipeline is not None and (sets or source is not None or is_file(pipeline)):
        _show_whole(pipeline, source, sets or [], as_json)
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


def _show_whole(pipeline: str, source: str | None, sets: list[str], as_json: bool) -> None:
    """Print every key of the pipeline that results from preset, file and command line.

    Raises UserError if a run would not start with it, other than for models that are missing here.
    """
    import yaml

    from uhr.curate.config import fetching, load
    from uhr.curate.estimate import plan_of
    from uhr.curate.planning.placement import whole_tree
    from uhr.curate.sources import source_of
    from uhr.manifests.schema import SOURCES

    config = load(pipeline, sets)
    tree = whole_tree(config)
    # without a source, the columns of any list of URLs: which source it will have is not known
    named = source is not None or bool(config.sources)
    images = source_of(source, config.sources, pipeline) if named else None
    if images is None:
        plan_of(fetching(config), False, SOURCES)
    else:
        whole = fetching(config, images.obeys) if images.gives_evidence else config
        plan_of(whole, False, images.columns)
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=10_000)
    console.emit(tree, as_json, lambda _: console.say(text.rstrip()))
