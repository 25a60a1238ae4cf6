"""`uhr train lora`: a folder of images to one file of a LoRA, with what is planned printed before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uhr.base import console
from uhr.base.console import command, counted, printed, say, shown
from uhr.base.files import saving, user_path
from uhr.base.paths import local
from uhr.models.cli import BASE_HELP, COMFYUI_HELP, MODEL_HELP, SPEC_HELP, model_name

if TYPE_CHECKING:
    from uhr.lora.plan import LoraPlan
    from uhr.lora.record import LoraFolder, LoraRecord

AGAIN = "free space there; the same command resumes where it stopped"


def lora(
    context: typer.Context,
    folder: Annotated[
        Path,
        typer.Argument(
            parser=local("FOLDER"), metavar="FOLDER", help="Images, with captions beside them if there are."
        ),
    ],
    name: Annotated[
        str, typer.Option("--name", metavar="STYLE", help="The name of the file, and of the folder.")
    ],
    model: Annotated[str | None, typer.Option("--model", metavar="DIR|ID|FILE", help=MODEL_HELP)] = None,
    comfyui: Annotated[
        Path | None,
        typer.Option("--comfyui", parser=local("--comfyui", utf8=True), metavar="DIR", help=COMFYUI_HELP),
    ] = None,
    trigger: Annotated[
        str | None,
        typer.Option(
            metavar="WORD",
            help="A word that every caption is to have; an image without a caption gets it alone.",
        ),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="GPU", help="The GPU, or cpu; by default that of this machine."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=local("--out", utf8=True), metavar="DIR", help="Folder for all results; STYLE."),
    ] = None,
    base: Annotated[str | None, typer.Option("--base", metavar="DIR|ID", help=BASE_HELP)] = None,
    spec: Annotated[str | None, typer.Option("--spec", metavar="NAME", help=SPEC_HELP)] = None,
    resolution: Annotated[
        int | None,
        typer.Option(min=1, metavar="PX", help="Of training; by default the model's native size."),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change one value of the recipe; repeatable."),
    ] = None,
    only_plan: Annotated[
        bool, typer.Option("--plan", help="Print images, steps, memory and time, and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Answer as JSON.")] = False,
) -> None:
    """Train a LoRA on a folder of images: curate, encode, train, validate, export. Run it again to resume.

    Without --set, the number of steps follows from the number of images, and the fastest settings that fit
    the GPU are chosen. All is in one folder; STYLE.safetensors in it is the result. docs/training.md has
    the rules.
    """
    from uhr.lora import plan as planning
    from uhr.lora import steps
    from uhr.lora.record import LoraFolder, LoraRequest, folder_text
    from uhr.manifests.sources.base import check_no_overlap
    from uhr.manifests.sources.folder import Folder

    named = model_name(model, spec, base, comfyui)
    request = LoraRequest(
        folder=folder_text(user_path(folder)),
        model=named.model,
        base=named.base,
        spec=named.spec,
        name=name,
        trigger=trigger,
        resolution=resolution,
        sets=tuple(sets or ()),
    )
    place = LoraFolder(None if out is None else user_path(out), name)
    if only_plan:
        _show_plan(planning.plan(request, on), place, as_json)
        return
    check_no_overlap(Folder.at(request.images), place.path)
    record = place.read(request)
    if record is None:
        planning.check_here(on)
        planning.check_weights(request)
        found = planning.plan(request, on)
        record = _record(found)
        with printed(as_json):
            show(found, place, record)
        place.begin(record)
    else:
        planning.check_same(record, on)
        with printed(as_json):
            say(f"{shown(place.path)} already contains this LoRA: resuming")
    with saving(place.path, AGAIN), place.lock():
        steps.run(context.obj, place, record, as_json)
    answer = result(place, record)
    console.emit(answer, as_json, lambda _: show_result(answer))


def _show_plan(found: LoraPlan, place: LoraFolder, as_json: bool) -> None:
    record = _record(found)
    console.emit(describe(found, place, record), as_json, lambda _: show(found, place, record))


def _record(found: LoraPlan) -> LoraRecord:
    from uhr.lora.record import LoraRecord

    return LoraRecord(
        request=found.request,
        gpu=None if found.gpu is None else found.gpu.name,
        settings=found.settings,
        missing=found.captions.missing,
    )


def describe(found: LoraPlan, place: LoraFolder, record: LoraRecord) -> dict[str, Any]:
    """The plan as plain values; sizes in bytes, times in seconds."""
    from uhr.lora.steps import commands

    gpu, recipe, smaller = found.gpu, found.recipe, found.smaller
    return {
        "name": found.request.name,
        "folder": str(place.path),
        "model": found.spec.name,
        "images": {
            "used": found.large,
            "too_small": found.small,
            "at_smaller": None if smaller is None else {"resolution": smaller[0], "used": smaller[1]},
            "broken": list(found.images.broken),
            "other_files": found.images.others,
        },
        "resolution": found.resolution,
        "captions": list(found.captions.lines),
        "recipe": recipe.name,
        "steps": recipe.steps,
        "batch": recipe.batch.size,
        "gpu": None if gpu is None else {"name": gpu.name, "title": gpu.title, "usable": gpu.usable},
        "settings": list(found.settings),
        "memory": {"peak": found.peak, "host": found.estimate["memory"]["host"]},
        "time": {
            "training": None if gpu is None else found.estimate["time"]["run"],
            "validation_images": found.images_seconds,
        },
        "validation": recipe.validation.model_dump(mode="json")["images"],
        "commands": [command(*each) for each in commands(place, record)],
    }


def show(found: LoraPlan, place: LoraFolder, record: LoraRecord) -> None:
    """Print the plan."""
    from uhr.base.formatting import duration, gibibytes
    from uhr.lora.steps import commands

    recipe, gpu, images = found.recipe, found.gpu, found.recipe.validation.images
    smaller = found.smaller
    visits = recipe.steps * recipe.batch.size / found.large
    rows = [
        ("images", _images(found)),
        *([] if smaller is None else [("", _at_smaller(*smaller))]),
        *(("captions" if not n else "", line) for n, line in enumerate(found.captions.lines)),
        ("trained", found.estimate["trained"]),
        (
            "steps",
            f"{recipe.steps:,} of {counted(recipe.batch.size, 'image')} at {found.resolution} px: "
            f"each image {visits:.0f} times",
        ),
    ]
    host = found.estimate["memory"]["host"]
    memory = gibibytes(found.peak)
    if gpu is None:
        rows.append(("memory", f"{memory} on the CPU; its time is not estimated"))
    else:
        chosen = " ".join(f"--set {each}" for each in found.settings) or "the recipe's own"
        rows.append(("settings", f"{chosen}: the fastest that fits"))
        of_host = f", and {gibibytes(host)} of the host's" if host else ""
        rows.append(("memory", f"{memory} of {gibibytes(gpu.usable)} usable on {gpu.title}{of_host}"))
        pictures = found.images_seconds
        extra = "" if pictures is None else f", and {duration(pictures)} for validation images"
        rows.append(("time", f"{duration(found.estimate['time']['run'])} by its data sheet{extra}"))
    if images is not None:
        rows.append(
            (
                "validation",
                f"{counted(len(images.prompts), 'prompt')}, before training and every {images.every} steps",
            )
        )
    rows.append(("result", str(place.file)))
    say(f"{found.request.name}: a LoRA of {found.spec.name}\n")
    for head, text in rows:
        say(f"{head:<10}  {shown(text)}")
    say("\neach step is a command of its own:")
    for each in commands(place, record):
        say(f"  {command(*each)}")


def _images(found: LoraPlan) -> str:
    text = f"{found.large} of {shown(found.request.images)}"
    left = [f"{found.small} too small for {found.resolution} px"] if found.small else []
    broken = found.images.broken
    if broken:
        names = ", ".join(broken[:3]) + (", ..." if len(broken) > 3 else "")
        left.append(f"{len(broken)} cannot be read ({names})")
    return f"{text}; left out: {', '.join(left)}" if left else text


def _at_smaller(resolution: int, count: int) -> str:
    return f"most are left out: with --resolution {resolution}, {count} would be used"


def result(place: LoraFolder, record: LoraRecord) -> dict[str, Any]:
    """Where everything is, and the command that samples with it, as plain values."""
    from uhr.lora.record import RECIPE, RUN
    from uhr.train.recipes import resolve
    from uhr.train.run.monitoring.validation_grid import FILE
    from uhr.train.run.monitoring.validation_images import FOLDER

    grid = place / RUN / FOLDER / FILE
    images = resolve(None, place / RECIPE).validation.images
    prompts = getattr(images, "prompts", None) or (record.request.trigger or "A PROMPT",)
    model = record.request.named.options()
    sample = ("--adapter", place.file, "--prompt", prompts[0], "--out", "A.png")
    return {
        "file": str(place.file),
        "grid": str(grid) if grid.is_file() else None,
        "run": str(place / RUN),
        "sample": command("sample", "euler", *model, *sample),
    }


def show_result(answer: dict[str, Any]) -> None:
    """Print what `result` returns."""
    rows = [("adapter", f"{answer['file']}   (diffusers: pipeline.load_lora_weights(FILE))")]
    if answer["grid"] is not None:
        rows.append(("grid", f"{answer['grid']}   (images without and with it)"))
    rows.append(("run", answer["run"]))
    say()
    for head, text in rows:
        say(f"{head:<8}  {text}")
    say(f"next: {answer['sample']}")
