"""The command `uhr models`: list and show backbones, or make a tiny one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uhr.base import console
from uhr.base.errors import UserError
from uhr.base.paths import local

if TYPE_CHECKING:
    from uhr.models.loading.opening import ModelName

MODEL_HELP = (
    "A diffusers folder, a hub id (org/name or org/name@revision), or with --base only a backbone: its lone "
    "file (BFL's, ComfyUI's or GGUF), or a transformer's own folder."
)
BASE_HELP = "With only a backbone as --model: the folder or hub id that provides the other components."
COMFYUI_HELP = (
    "A ComfyUI installation: --model is the name of a backbone there (needed if it has several), and text "
    "encoders and VAE are found beside it."
)
SPEC_HELP = "The model's spec, if its configuration does not identify it: a name of `uhr models list`."
"""The options by which every command names a model."""


def model_name(model: str | None, spec: str | None, base: str | None, comfyui: Path | None) -> ModelName:
    """Return the model that the options of a command name.

    With `comfyui` it is assembled from the files of an installation, and what was chosen is printed. Raises
    UserError without a model.
    """
    from uhr.models.loading.opening import ModelName

    if comfyui is None:
        if model is None:
            fix = "name one: --model DIR, a hub id, or --comfyui DIR for the files of ComfyUI"
            raise UserError("--model is missing", fix)
        return ModelName(model, spec, base)
    from uhr.models.loading.comfyui.assembly import assemble

    found = assemble(comfyui, model, base, spec)
    for line in found.lines:
        console.note(line)
    return found.name


app = typer.Typer(no_args_is_help=True, help="List and show the known backbones, or make a tiny one.")
Json = Annotated[bool, typer.Option("--json", help="Answer as JSON.")]


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List every known backbone, whether it may be used commercially, and the samplers with their weights."""
    from uhr.models import show

    console.emit(show.overview(), as_json, show.print_overview)


@app.command("show")
def show_(
    model: Annotated[
        str,
        typer.Argument(metavar="NAME|DIR|FILE", help="A spec's name, a diffusers folder, a backbone's file."),
    ],
    spec: Annotated[str | None, typer.Option(metavar="NAME", help=SPEC_HELP)] = None,
    as_json: Json = False,
) -> None:
    """Show a backbone's geometry, tokens, guidance, text lengths and licence, and the commands that use
    it."""
    from uhr.models import show

    console.emit(show.details(model, spec), as_json, show.print_details)


@app.command("make-tiny")
def make_tiny_(
    folder: Annotated[
        Path, typer.Argument(parser=local("DIR", utf8=True), metavar="DIR", help="A new or empty folder.")
    ],
    spec: Annotated[str, typer.Option(help="Which tiny spec.")] = "tiny-flux1",
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    as_json: Json = False,
) -> None:
    """Write a tiny checkpoint: the real classes with random weights, a few MB. Its images show nothing."""
    from uhr.models.zoo import make_tiny

    made = make_tiny(spec, folder, seed)
    console.emit(
        {"folder": str(made), "spec": spec, "seed": seed},
        as_json,
        lambda _: console.say(f"{console.shown(made)}: {spec}, random weights of seed {seed}"),
    )
