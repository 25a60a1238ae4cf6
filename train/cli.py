"""`uhr train`: recipes, encode, plan, run, resume, export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from uhr.base import console
from uhr.base.console import command, say, shown
from uhr.base.errors import UserError, with_options
from uhr.base.files import saving
from uhr.base.paths import anywhere, local, or_similar
from uhr.models.cli import BASE_HELP, COMFYUI_HELP, MODEL_HELP, SPEC_HELP, model_name
from uhr.train.data.names import named_path

app = typer.Typer(no_args_is_help=True, help="Encode a manifest once, train on it, export the adapter.")

Json = Annotated[bool, typer.Option("--json", help="Answer as JSON.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change one value; repeatable.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")]
RecipeName = Annotated[
    str | None,
    typer.Argument(metavar="RECIPE", help="A name (`uhr train recipes`), or package.module:Recipe."),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        parser=local("--config"),
        metavar="FILE",
        help="YAML that begins with `recipe: NAME`, followed by changes to it.",
    ),
]
RunFolder = Annotated[
    Path, typer.Argument(parser=local("RUN", utf8=True), metavar="RUN", help="Folder of a run.")
]
ModelPath = Annotated[str | None, typer.Option("--model", metavar="DIR|ID|FILE", help=MODEL_HELP)]
ComfyUI = Annotated[
    Path | None,
    typer.Option("--comfyui", parser=local("--comfyui", utf8=True), metavar="DIR", help=COMFYUI_HELP),
]
Base = Annotated[str | None, typer.Option("--base", metavar="DIR|ID", help=BASE_HELP)]
Spec = Annotated[str | None, typer.Option("--spec", metavar="NAME", help=SPEC_HELP)]
DATA_HELP = (
    "What `uhr train encode` wrote, with its name if the recipe has several data sets; once per data set and "
    "resolution."
)
INIT_HELP = (
    "Begin with the weights of a run (RUN@STEP: of that checkpoint) or an adapter, and a new optimiser. They "
    "are trained further or fused, as the recipe's init.use says. Repeatable: all but the last are fused."
)
Data = typer.Option("--data", parser=named_path, metavar="[NAME=]DIR", help=DATA_HELP)
DataFolders = Annotated[list[Any] | None, Data]

Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes that share each batch; by default 1, or torchrun's.")
]
LauncherName = Annotated[
    str | None,
    typer.Option(
        "--launcher",
        metavar="local|torchrun|ray",
        help="What starts the processes: this command, torchrun (it has), or Ray.",
    ),
]
Address = Annotated[
    str | None, typer.Option(help="A Ray cluster, HOST:PORT; with --launcher ray, which else starts its own.")
]

IN_RECIPE = {"device": "--set runtime.device=", "engine": "--launcher "}
"""The options of parameters that are values of the recipe or have another name here, as prefixes."""

AGAIN = "free space there; the same command resumes where it stopped"


def _next(*arguments: object) -> None:
    say(f"next: {command(*arguments)}")


@app.command("recipes")
def recipes_(as_json: Json = False) -> None:
    """List the recipes and what they are for."""
    from uhr.train.recipes import NAMES, recipe

    rows = [
        {"name": r.name, "about": r.about, "family": r.family, "steps": r.steps} for r in map(recipe, NAMES)
    ]
    console.emit(rows, as_json, lambda _: console.table(list(rows[0]), [list(r.values()) for r in rows]))


@app.command("show")
def show_(
    recipe: RecipeName = None, config: ConfigFile = None, sets: Sets = None, as_json: Json = False
) -> None:
    """Show every value of a recipe, and where it comes from."""
    from uhr.train.recipes import describe, print_description, resolve

    resolved = resolve(recipe, config, sets)
    console.emit(describe(resolved), as_json, lambda rows: print_description(resolved, rows))


@app.command("plan")
def plan_(
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="NAME|DIR|ID|FILE", help=f"The name of a published spec. {MODEL_HELP}"
        ),
    ] = None,
    recipe: RecipeName = None,
    data: DataFolders = None,
    comfyui: ComfyUI = None,
    base: Base = None,
    spec: Spec = None,
    config: ConfigFile = None,
    sets: Sets = None,
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="GPU", help="Say whether it fits, and how long it takes: h100, ..."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share each batch.")] = 1,
    machines: Annotated[int, typer.Option(min=1, help="Machines on which they are, as many on each.")] = 1,
    as_json: Json = False,
) -> None:
    """Estimate steps, tokens, parameters, memory, storage and time of a run; loads no weights."""
    from uhr.train.recipes import resolve
    from uhr.train.run.estimate.estimate import estimate
    from uhr.train.run.estimate.memory import Processes
    from uhr.train.run.estimate.plan_text import print_estimate

    named, processes = model_name(model, spec, base, comfyui), Processes(workers, machines)
    found = estimate(resolve(recipe, config, sets), named, data or [], on, processes)
    console.emit(found, as_json, print_estimate)


@app.command("encode")
def encode_(
    manifest: Annotated[
        Any,
        typer.Argument(
            parser=anywhere("MANIFEST"),
            metavar="MANIFEST",
            help="Folder or s3:// address of a manifest; its kept rows are encoded.",
        ),
    ],
    out: Annotated[
        Any,
        typer.Option(
            "--out",
            parser=anywhere("--out"),
            metavar="DIR",
            help="Folder or s3:// address for latents and text embeddings.",
        ),
    ],
    model: ModelPath = None,
    comfyui: ComfyUI = None,
    base: Base = None,
    spec: Spec = None,
    sets: Sets = None,
    device: Device = "auto",
    engine: Annotated[
        str, typer.Option(help="ray: workers of Ray; local: uhr's own worker processes.")
    ] = "ray",
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Worker processes; by default one per GPU of several, all that a cluster can run, or 0: "
            "this process.",
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="A running Ray cluster whose machines have MANIFEST, its images, the model and DIR at the "
            "same paths or addresses; --device cuda uses its GPUs."
        ),
    ] = None,
    reuse: Annotated[
        list[Path] | None,
        typer.Option(
            "--reuse",
            parser=local("--reuse"),
            metavar="DIR",
            help="Encoded data from which equal rows are copied; repeatable.",
        ),
    ] = None,
    pixels: Annotated[
        bool, typer.Option("--pixels", help="Store pixel crops to train a VAE: --set pixels=true.")
    ] = False,
    only_budget: Annotated[
        bool, typer.Option("--budget", help="Print bytes on disk and hours, and stop; loads no weights.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Encode a manifest's kept rows to latents and text embeddings. Run it again to continue.

    --set takes resolution, buckets (aspects, square, ultraflux-4k or sizes), aspects, enlarge, dtype,
    text_dtype, captions (columns), missing, trigger, split, guide, mask, pixels and tiling: see
    docs/encoding.md.
    """
    from uhr.base.config import apply_sets, build
    from uhr.train.encode.config import EncodeConfig
    from uhr.train.encode.in_store import encode_in_store, work_folder
    from uhr.train.encode.run import device_of, encode, pool_of

    changes = [*(sets or []), *(["pixels=true"] if pixels else [])]
    config = build(EncodeConfig, apply_sets({}, changes), "--set")
    named = model_name(model, spec, base, comfyui)
    if only_budget:
        from uhr.train.encode.budget import budget, print_budget

        console.emit(budget(manifest, named, config, device, workers or 1), as_json, print_budget)
        return
    place = device_of(device, address)
    pool = pool_of(engine, workers, address, place)
    at_work = out if isinstance(out, Path) else work_folder(out)
    into = encode if isinstance(out, Path) else encode_in_store
    with saving(at_work, AGAIN):
        info, was_finished = into(manifest, named, out, config, place, pool, reuse or [])

    def text(_: Any) -> None:
        from uhr.train.encode.stored.encoded import print_encoded
        from uhr.train.run.suggestion import for_encoded

        if was_finished:
            say(f"{shown(out)} is encoded already: the same manifest, model and configuration")
        print_encoded(info)
        say()
        recipe, changes = for_encoded(info, out)
        sets = [argument for change in changes for argument in ("--set", change)]
        _next("train", "run", recipe, *named.options(), "--data", out, "--out", "RUN", *sets)

    console.emit({"already": was_finished, **info.model_dump(mode="json")}, as_json, text)


@app.command("run")
def run_(
    data: Annotated[list[Any], Data],
    out: Annotated[
        Path,
        typer.Option(
            "--out", parser=local("--out", utf8=True), metavar="DIR", help="Folder for log and checkpoints."
        ),
    ],
    model: ModelPath = None,
    comfyui: ComfyUI = None,
    base: Base = None,
    spec: Spec = None,
    recipe: RecipeName = None,
    config: ConfigFile = None,
    sets: Sets = None,
    init: Annotated[
        list[Path] | None,
        typer.Option(
            "--init",
            "--adapter",
            parser=local("--init", utf8=True),
            metavar="RUN[@STEP]|ADAPTER|FILE",
            help=INIT_HELP,
        ),
    ] = None,
    workers: Workers = None,
    launcher: LauncherName = None,
    address: Address = None,
) -> None:
    """Train. Ctrl-C finishes the step and saves; the same command resumes, and so does `uhr train resume`."""
    from uhr.train.recipes import resolve
    from uhr.train.run.job import start
    from uhr.train.run.launch import Launch

    resolved = resolve(recipe, config, sets)
    launch = Launch.of(launcher, workers, address)

    named = model_name(model, spec, base, comfyui)

    def begin() -> Any:
        job = start(resolved, named, data, out, init or [])
        if job.resume is not None and job.done < job.recipe.steps:
            say(f"{shown(out)} already contains this run at step {job.done}: resuming")
        return job

    with saving(out, AGAIN), with_options(**IN_RECIPE):
        _train(out, resolved, begin, launch)


@app.command("resume")
def resume_(
    run: RunFolder,
    sets: Sets = None,
    model: Annotated[str | None, typer.Option(help="Where the model is now, if it was moved.")] = None,
    data: DataFolders = None,
    base: Annotated[str | None, typer.Option(help="Where the model's base is now, if it was moved.")] = None,
    workers: Workers = None,
    launcher: LauncherName = None,
    address: Address = None,
) -> None:
    """Resume a run exactly where it stopped.

    Only steps, device, shard, checkpoints, restarts, log, data_cache, validation and on_nonfinite may change;
    so may the number of processes.
    """
    from uhr.train.run.job import recipe_of, reopen
    from uhr.train.run.launch import Launch

    launch = Launch.of(launcher, workers, address)

    def begin() -> Any:
        job = reopen(run, sets or [], model, data or [], base)
        if job.resume is None and launch.launcher != "torchrun":
            say(f"{shown(run)} has no checkpoint yet: starting at its first step")
        return job

    with saving(run, AGAIN), with_options(**IN_RECIPE):
        _train(run, recipe_of(run, sets or []), begin, launch)


def _train(out: Path, recipe: Any, begin: Callable[[], Any], launch: Any) -> None:
    """Start or reopen a run, train it, and say how it ended."""
    launch.check(recipe)
    found = launch.train(out, recipe.runtime.device, begin)
    if found is None:
        return
    job, result = found
    if result is None:
        say(f"{shown(job.out)} is finished: all {job.recipe.steps} steps are done")
        last = job.recipe.phases[-1]

        longer = f"phases.{last.name}.steps={2 * last.steps}"
        say(f"longer: {command('train', 'resume', job.out, '--set', longer)}")
    else:
        if result.stopped:
            # `train` has printed how to resume: no other message follows
            raise SystemExit(130)
        from uhr.train.run.monitoring.log import read_log

        say(result.describe(read_log(job.out)))
    _next("train", "export", job.out, "--out", "EXPORT")


@app.command("export")
def export_(
    run: RunFolder,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            parser=local("--out", utf8=True),
            metavar="DIR|FILE",
            help="A new folder for the adapter or backbone and its card. With --to: a folder for the file "
            "(such as ComfyUI's models/loras), or its path; by default the run's.",
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="comfyui|kohya|diffusers",
            help="Write one .safetensors file with the keys of that program.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="With --to: the name of the file and in it.")] = None,
    trigger: Annotated[
        str | None,
        typer.Option(
            metavar="WORD", help="With --to: the trigger word in its metadata; default: that of the data."
        ),
    ] = None,
    preview: Annotated[
        Path | None,
        typer.Option(
            parser=local("--preview"),
            metavar="IMAGE",
            help="With --to: the image in its metadata; default: the run's last validation image.",
        ),
    ] = None,
    step: Annotated[
        int | None,
        typer.Option("--step", "--checkpoint", help="The adapter after this step; the newest otherwise."),
    ] = None,
    weights: Annotated[str, typer.Option(help="trained, or ema: their running average.")] = "trained",
    as_json: Json = False,
) -> None:
    """Write what was trained in the format of diffusers, with a model card: lineage, counts, licences.

    With --to, write one file of it for another program.
    """
    from uhr.models.specs.registry import get
    from uhr.train.recipes import read_recipe
    from uhr.train.run.exports.export import export, export_file, needed_files

    if weights not in ("trained", "ema"):
        raise UserError(f"--weights {weights}", "it must be trained or ema")
    which: Literal["trained", "ema"] = "ema" if weights == "ema" else "trained"
    if to is not None:
        from uhr.train.run.exports.text import file_form, print_file

        if name is None and (out is None or out.suffix != ".safetensors"):
            raise UserError("--name is missing", "name the file of the adapter: --name STYLE")
        form = file_form(to)
        written = export_file(run, form, name or "", out, step, which, trigger, preview)
        console.emit(written.describe(), as_json, lambda _: print_file(run, written))
        return
    for option, value in (("--name", name), ("--trigger", trigger), ("--preview", preview)):
        if value is not None:
            raise UserError(f"{option} {value} without --to", "name a program: --to comfyui")
    if out is None:
        raise UserError("--out is missing", "name a new folder, or one file by --to comfyui --name STYLE")
    folder, info = export(run, out, step, which)
    needed = needed_files(run, info)

    def text(_: Any) -> None:
        recipe = read_recipe(info.recipe)
        part = recipe.trainable
        what = part.describe(get(info.model.spec))
        say(f"{shown(folder)}: {what}, after step {info.step}, and its card README.md")
        for name, file in needed.items():
            say(f"it was trained on top of {name} and must be loaded together with it: {shown(file)}")
        options = part.sample_options(folder, info.model.named)
        options += [part for file in needed.values() for part in ("--adapter", str(file))]
        options += ["--prompt", "A PROMPT", *recipe.sampling.arguments]
        _next("sample", recipe.sampling.sampler, *options, "--out", "A.png")

    answer = {"folder": str(folder), "step": info.step}
    answer["load_together"] = {name: str(path) for name, path in needed.items()}
    console.emit(answer, as_json, text)


@app.command("import")
def import_(
    config: Annotated[
        Path,
        typer.Argument(
            parser=local("CONFIG", utf8=True),
            metavar="FILE|DIR",
            help="kohya's dataset or training TOML, or its train_data_dir; ai-toolkit's YAML; SimpleTuner's "
            "multidatabackend.json.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", parser=local("--out", utf8=True), metavar="DIR", help="Folder for two files."),
    ],
    recipe: Annotated[str, typer.Option(metavar="RECIPE", help="The recipe that is changed.")] = "lora",
    as_json: Json = False,
) -> None:
    """Turn another trainer's configuration into a pipeline and a recipe; see docs/coming-from.md."""
    from uhr.train.foreign.job import import_config, print_imported

    done = import_config(config, out, recipe)
    console.emit(done.describe(), as_json, lambda _: print_imported(done))


@app.command("log")
def log_(run: RunFolder, as_json: Json = False) -> None:
    """Show the log of a run: loss, learning rate and gradient norm, a line per range of steps."""
    from uhr.train.run.monitoring.log import print_log, read_log

    entries = read_log(run)
    if not entries:
        fix = or_similar(run, "name the folder that `uhr train run --out` wrote")
        raise UserError(f"{run} has no log", fix)
    console.emit(entries, as_json, print_log)
