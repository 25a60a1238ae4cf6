"""`uhr eval`: protocols, generate, run, compare, vae, judge, study, experiment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uhr.base import console
from uhr.base.console import say, shown
from uhr.base.errors import UserError
from uhr.base.paths import anywhere, local
from uhr.models.cli import BASE_HELP, MODEL_HELP, SPEC_HELP
from uhr.train.evaluate.experiments.cli import experiment
from uhr.train.evaluate.judges.cli import judge, study
from uhr.train.evaluate.options import (
    AllowMissing,
    Clip,
    Device,
    Json,
    MetricWeights,
    Seed,
    Together,
    TrainedOn,
)
from uhr.train.evaluate.reconstruction.cli import vae

if TYPE_CHECKING:
    from uhr.train.evaluate.scoring.request import Evaluation

app = typer.Typer(
    no_args_is_help=True,
    help="Generate images under a written protocol, score them, and compare results with intervals.",
)

Name = Annotated[
    str,
    typer.Argument(metavar="PROTOCOL", help="A name of `uhr eval protocols`, or a YAML file of your own."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Change a value of the protocol, and with it its id: size=2048x2048. Repeatable.",
    ),
]
Prompts = Annotated[
    Any,
    typer.Option(
        parser=anywhere("--prompts"),
        metavar="PATH",
        help="The protocol's prompts, in the layout that `uhr eval show` names; a manifest may be at s3://.",
    ),
]
First = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Use only the first N prompts; the result is marked as incomplete."
    ),
]
Engine = Annotated[str, typer.Option(help="ray, or local for worker processes without Ray.")]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0, help="Workers, each with the models in memory; by default one per GPU. 0: this process."
    ),
]
Address = Annotated[
    str | None, typer.Option(help="A Ray cluster, HOST:PORT; all paths must exist there too.")
]
CHECKPOINTS = "Checkpoints of a training run"
RESULT_HELP = "A folder that `uhr eval run` wrote, by itself or as NAME=FOLDER."


@app.command("protocols")
def protocols_(as_json: Json = False) -> None:
    """List the protocols: size, number of images, metrics, and what each is."""
    from uhr.train.evaluate import protocol

    rows = []
    for name in protocol.names():
        found = protocol.load(name).protocol
        rows.append(
            {
                "name": name,
                "size": f"{found.size[0]}x{found.size[1]}",
                "images": found.images,
                "references": found.references.kind,
                "metrics": [use.name for use in found.metrics],
                "id": found.id,
                "about": found.about,
            }
        )

    def show(rows: list[dict[str, Any]]) -> None:
        head = ("name", "size", "images", "references", "about")
        console.table(head, [[row[name] for name in head] for row in rows])
        say("\n`uhr eval show NAME` has prompts, metrics, sources and the papers' values")

    console.emit(rows, as_json, show)


@app.command("show")
def show_(name: Name, sets: Sets = None, as_json: Json = False) -> None:
    """Show a protocol: what decides its numbers, where it comes from, and the papers' values."""
    from uhr.train.evaluate import protocol, show

    loaded = protocol.load(name, sets)
    found = {"id": loaded.protocol.id, **loaded.protocol.model_dump(mode="json")}
    console.emit(found, as_json, lambda _: show.print_protocol(loaded))


@app.command("metrics")
def metrics_(
    name: Annotated[
        str | None, typer.Argument(metavar="[METRIC]", help="One metric, with its options and weights.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the metrics: what they measure, what they need, and where their weights are published."""
    from uhr.models.metrics import registry
    from uhr.train.evaluate import show

    rows = [registry.describe(each) for each in (registry.NAMES if name is None else (name,))]
    console.emit(rows, as_json, lambda rows: show.print_metrics(rows, whole=name is not None))


def _loaded(name: str, sets: list[str] | None, prompts: Path | str | None, first: int | None) -> Evaluation:
    """The protocol with its items."""
    from uhr.train.evaluate import protocol
    from uhr.train.evaluate.prompts import read_items
    from uhr.train.evaluate.scoring.request import Evaluation

    loaded = protocol.load(name, sets)
    items = read_items(loaded, prompts, first)
    published = loaded.protocol.prompts.count
    count = len({item.prompt_index for item in items})
    if first is None and published not in (None, count):
        what = f"{loaded.protocol.name} has {published:,} prompts, and these are {count:,}"
        console.warn(f"{what}: the result is marked as incomplete")
    return Evaluation(loaded.protocol, items, first is None and published in (None, count))


@app.command("generate")
def generate_(
    name: Name,
    sampler: Annotated[
        str, typer.Option(metavar="SAMPLER", help="A name of `uhr sample list`, or package.module:Class.")
    ],
    model: Annotated[str, typer.Option(metavar="DIR|ID|FILE", help=MODEL_HELP)],
    out: Annotated[
        Path, typer.Option(parser=local("--out"), metavar="DIR", help="The set; the same command resumes it.")
    ],
    prompts: Prompts = None,
    first: First = None,
    sets: Sets = None,
    adapters: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            metavar="PATH[=SCALE]",
            help="An adapter's folder or file; repeatable. What it says of its sampling is the default.",
        ),
    ] = None,
    base: Annotated[str | None, typer.Option(metavar="DIR|ID", help=BASE_HELP)] = None,
    spec: Annotated[str | None, typer.Option(metavar="NAME", help=SPEC_HELP)] = None,
    steps: Annotated[int | None, typer.Option(help="Default: the published number.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Default: the published value.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="K=V", help="An option of the sampler (`uhr sample options`)."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    device: Device = "auto",
    offload: Annotated[str | None, typer.Option(metavar="KIND", help="model, group, sequential.")] = None,
    quantize: Annotated[str | None, typer.Option(metavar="KIND", help="nf4, int8, int8wo, float8wo.")] = None,
    engine: Engine = "ray",
    workers: Workers = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Generate the images of a protocol with a sampler; `uhr eval run` scores them."""
    from uhr.base.config import apply_sets, build
    from uhr.models.generate.adapter_sampling import printed_defaults
    from uhr.models.generate.request import Adapter, Request
    from uhr.models.loading.opening import ModelName
    from uhr.runtime.pool import Pool
    from uhr.train.evaluate.generate import generate

    items = _loaded(name, sets, prompts, first).items
    chosen = [Adapter.parse(text) for text in adapters or ()]
    defaults = printed_defaults(chosen, ModelName(model, spec, base), sampler, guidance, option or [])
    tree = {
        "sampler": sampler,
        "model": model,
        "base": base,
        "spec": spec,
        "steps": steps,
        "guidance": defaults.guidance if guidance is None else guidance,
        "adapters": chosen,
        "dtype": dtype,
        "device": device,
        "offload": offload,
        "quantize": quantize,
        "options": apply_sets({}, [*defaults.sets, *(option or [])]),
    }
    made = generate(build(Request, tree, "uhr eval generate"), items, out, Pool.of(engine, workers, address))

    def show(_: object) -> None:
        counts = made.info.counts
        failed = f", {counts['failed']} failed" if counts["failed"] else ""
        say(f"{shown(made.out)}: {console.counted(counts['made'], 'image')}{failed}")
        if not counts["failed"]:
            same: list[Any] = [] if prompts is None else ["--prompts", prompts]
            same += [] if first is None else ["--first", first]
            same += [word for value in sets or () for word in ("--set", value)]
            command = console.command("eval", "run", name, *same, "--images", out, "--out", "RESULT")
            say(f"next: {command}")

    console.emit(made.facts(), as_json, show)
    if made.info.counts["failed"]:
        counts = made.info.counts
        what = f"{counts['failed']} of {counts['items']} images failed; {made.first_error}"
        raise UserError(what, f"see {out}/failed; the same command tries them again")


@app.command("run")
def run_(
    target: Annotated[
        str,
        typer.Argument(
            metavar="PROTOCOL|RUN",
            help="A name of `uhr eval protocols` or a YAML file; with --checkpoints a training run.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(parser=local("--out"), metavar="DIR", help="The result; the same command resumes it."),
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            parser=local("--images"),
            metavar="DIR",
            help="A set of `uhr eval generate`, or a folder of any generator: files called by the index "
            "of the prompt, or a metadata.jsonl.",
        ),
    ] = None,
    references: Annotated[
        Any,
        typer.Option(
            parser=anywhere("--references"),
            metavar="DIR",
            help="Real images: a folder, or a manifest for its kept rows, also at s3://.",
        ),
    ] = None,
    prompts: Prompts = None,
    first: First = None,
    sets: Sets = None,
    weights: MetricWeights = None,
    allow_missing: AllowMissing = False,
    trained_on: TrainedOn = None,
    clip: Clip = None,
    reuse: Annotated[
        Path | None,
        typer.Option(
            parser=local("--reuse"),
            metavar="RESULT",
            help="A finished result with the same references: their features are not computed again.",
        ),
    ] = None,
    seed: Seed = 0,
    together: Together = None,
    checkpoints: Annotated[
        str | None,
        typer.Option(
            metavar="all|STEPS",
            help="Generate and score with each checkpoint of RUN, or of steps 100,200.",
            rich_help_panel=CHECKPOINTS,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            metavar="PROTOCOL",
            help="The protocol of --checkpoints.",
            rich_help_panel=CHECKPOINTS,
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(metavar="SAMPLER", help="Default: the recipe's.", rich_help_panel=CHECKPOINTS),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Default: the sampler's.", rich_help_panel=CHECKPOINTS)
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", metavar="K=V", help="An option of the sampler.", rich_help_panel=CHECKPOINTS
        ),
    ] = None,
    device: Device = "auto",
    engine: Engine = "local",
    workers: Workers = 0,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Score the images of a protocol with its metrics, or each checkpoint of a training run."""
    from uhr.base.config import apply_sets
    from uhr.runtime.pool import Pool
    from uhr.train.evaluate import show
    from uhr.train.evaluate.job import evaluate
    from uhr.train.evaluate.overlap.lineage import Trained
    from uhr.train.evaluate.result import open_result
    from uhr.train.evaluate.scoring.request import Scoring

    _check_target(checkpoints, name, images, {"--sampler": sampler, "--steps": steps, "--option": option})
    evaluation = _loaded(target if name is None else name, sets, prompts, first)
    scoring = Scoring(
        pool=Pool.of(engine, workers, address),
        references=references or (prompts if evaluation.protocol.references.in_prompts else None),
        weights=weights or (),
        allow_missing=allow_missing,
        trained=Trained(trained_on or (), clip),
        reuse=None if reuse is None else open_result(reuse),
        seed=seed,
        device=device,
        together=together,
    )
    if checkpoints is not None:
        from uhr.train.evaluate.checkpoints.run import CheckpointJob, chosen_steps, evaluate_checkpoints

        run = local("RUN")(target)
        sampling = {
            "sampler": sampler,
            "steps": steps,
            "options": apply_sets({}, option or []),
            "device": device,
        }
        facts = evaluate_checkpoints(
            CheckpointJob(run, chosen_steps(run, checkpoints), evaluation, out, sampling, scoring)
        )
        console.emit(facts, as_json, lambda facts: show.print_checkpoints(facts, out))
        return
    assert images is not None
    found = evaluate(evaluation, images, out, scoring)
    value = {"out": str(found.folder), **found.info.model_dump(mode="json")}
    console.emit(value, as_json, lambda _: show.print_result(found))


def _check_target(
    checkpoints: str | None, protocol: str | None, images: Path | None, sampling: dict[str, Any]
) -> None:
    """Raise UserError for options that do not go together."""
    if checkpoints is None:
        for option, value in {"--protocol": protocol, **sampling}.items():
            if value:
                raise UserError(
                    f"{option} is an option of --checkpoints", "leave it out, or give --checkpoints all"
                )
        if images is None:
            raise UserError("--images is missing", "name the folder of the generated images")
    elif images is not None:
        raise UserError("--images and --checkpoints", "give one of them: checkpoints generate their images")
    elif protocol is None:
        raise UserError("--protocol is missing", "name the protocol of --checkpoints")


@app.command("artifacts")
def artifacts_(
    places: Annotated[
        list[Any],
        typer.Argument(parser=local("IMAGE"), metavar="IMAGE|DIR...", help="Images, or folders of them."),
    ],
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric", metavar="NAME", help="grid, speckle, repetition (default: all three), seams."
        ),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="METRIC.OPTION=VALUE", help="grid.periods=[512,1024]. Repeatable."),
    ] = None,
    heatmaps: Annotated[
        Path | None,
        typer.Option(
            parser=local("--heatmaps"),
            metavar="DIR",
            help="Write a PNG per image and metric that shows where.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the artifacts of images of any origin: grids, seams, speckles, repeated content."""
    from uhr.base.config import apply_sets
    from uhr.train.evaluate import artifacts

    chosen = artifacts.chosen(metric or artifacts.METRICS, apply_sets({}, sets or []))
    rows = artifacts.measure(places, chosen, heatmaps)
    console.emit(rows, as_json, lambda rows: artifacts.print_rows(rows, heatmaps))


@app.command("compare")
def compare_(
    results: Annotated[list[str], typer.Argument(metavar="RESULT...", help=RESULT_HELP)],
    out: Annotated[
        Path | None,
        typer.Option(
            parser=local("--out"),
            metavar="FILE.html",
            help="Write one page with tables, images and a viewer.",
        ),
    ] = None,
    embed: Annotated[
        int,
        typer.Option(
            min=0, metavar="MB", help="With --out: megabytes of full images that the page contains."
        ),
    ] = 64,
    to: Annotated[
        str | None, typer.Option("--to", metavar="latex|csv|md", help="Print the table in this form.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare results of one protocol with the first of them: paired differences with intervals."""
    from uhr.train.evaluate.compare import tables
    from uhr.train.evaluate.compare.comparison import compare, open_arms

    tables.check_form(to)
    if len(results) < 2:
        raise UserError("one result cannot be compared", "name two or more; the first is the baseline")
    found = compare(open_arms(results))
    if out is not None:
        from uhr.train.evaluate.compare.page import write_page

        write_page(found, out, embed * 1_000_000)
    if to is not None:
        print(tables.render(found, to), end="")
        return

    def show(_: object) -> None:
        tables.print_comparison(found)
        if out is not None:
            say(f"\n{shown(out)} has prompts and images")

    console.emit(found.facts(), as_json, show)


app.command("vae")(vae)
app.command("judge")(judge)
app.command("study")(study)
app.command("experiment")(experiment)
