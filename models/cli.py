"""`uhr models` and `uhr sample`: look at backbones, make a tiny one, paint pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from uhr.base import console
from uhr.models.samplers import SAMPLERS, check_name

app = typer.Typer(no_args_is_help=True, help="Look at the known backbones, or make a tiny one.")
Json = Annotated[bool, typer.Option("--json", help="Answer as JSON.")]


@app.command("list")
def list_(as_json: Json = False) -> None:
    """Every known backbone: what it is, and whether it may be used commercially."""
    from uhr.models import show

    console.emit(show.overview(), as_json, show.print_overview)


@app.command("show")
def show_(
    model: Annotated[str, typer.Argument(metavar="NAME|DIR", help="A spec's name, or a diffusers folder.")],
    as_json: Json = False,
) -> None:
    """Geometry, tokens, guidance, text lengths, licence of a backbone, and what can be done with it here."""
    from uhr.models import show

    console.emit(show.details(model), as_json, show.print_details)


@app.command("make-tiny")
def make_tiny_(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    spec: Annotated[str, typer.Option(help="Which tiny spec.")] = "tiny-flux1",
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    as_json: Json = False,
) -> None:
    """Write a tiny checkpoint: the real classes with random weights, a few MB. It paints no picture of
    anything."""
    from uhr.models.zoo import make_tiny

    made = make_tiny(spec, folder, seed)
    console.emit(
        {"folder": str(made), "spec": spec, "seed": seed},
        as_json,
        lambda _: console.say(f"{made}: {spec}, random weights of seed {seed}"),
    )


class SamplerGroup(TyperGroup):
    """Every sampler is a sub-command; so is a class of the user's own by its import path."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        known = super().get_command(ctx, cmd_name)
        if known is not None:
            return known
        check_name(cmd_name)
        return super().get_command(ctx, next(iter(SAMPLERS)))


sample = typer.Typer(
    cls=SamplerGroup,
    no_args_is_help=True,
    help="Paint a picture. SAMPLER is one of those below, or a class of your own as package.module:Class.",
    subcommand_metavar="SAMPLER [OPTIONS]",
)


@sample.command("list")
def list_samplers(as_json: Json = False) -> None:
    """Every sampler: what it does and which weights it takes."""
    rows = [
        {"name": name, "families": list(info.paths), "summary": info.summary, "weights": info.weights}
        for name, info in SAMPLERS.items()
    ]
    console.emit(
        rows,
        as_json,
        lambda _: console.table(
            ["sampler", "what it does", "backbones", "weights"],
            [[r["name"], r["summary"], ", ".join(r["families"]), r["weights"]] for r in rows],
        ),
    )


def paint(
    ctx: typer.Context,
    model: Annotated[
        str, typer.Option(help="A diffusers folder, or a hub id: org/name or org/name@revision.")
    ],
    prompt: Annotated[str, typer.Option(help="What to paint.")],
    out: Annotated[Path, typer.Option(help="The PNG to write; the whole call goes into it.")],
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="In px; the model's own if not given.")
    ] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(metavar="PATH[=SCALE]", help="A LoRA folder or file; may be repeated.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="The model card's if not given.")] = None,
    guidance: Annotated[float | None, typer.Option(help="The model card's if not given.")] = None,
    negative: Annotated[
        str | None, typer.Option(help="Negative prompt; wants --set true_cfg_scale=3.5, say.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed and call give the same picture.")] = 0,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16; auto: bfloat16 on a GPU, float32 on the CPU.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    offload: Annotated[
        str | None,
        typer.Option(help="Keep weights off the GPU: model, group, sequential (least memory, slowest)."),
    ] = None,
    quantize: Annotated[
        str | None, typer.Option(help="nf4, int8 (bitsandbytes), int8wo, float8wo (torchao).")
    ] = None,
    transformer: Annotated[
        Path | None, typer.Option(help="Other weights of the backbone: a folder, safetensors file or GGUF.")
    ] = None,
    vae: Annotated[Path | None, typer.Option(help="Other weights of the VAE: a folder or a file.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="K=V", help="A sampler's option; may be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    from uhr.models import sampling

    request = sampling.Request(
        sampler=str(ctx.info_name),
        model=model,
        prompt=prompt,
        out=out,
        negative=negative,
        size=sampling.parse_size(size) if size else None,
        steps=steps,
        guidance=guidance,
        seed=seed,
        adapters=tuple(adapter or ()),
        dtype=dtype,
        device=device,
        offload=offload,
        quantize=quantize,
        transformer=transformer,
        vae=vae,
        sets=tuple(sets or ()),
    )
    call = sampling.check(request)
    record = sampling.run(call)
    console.emit({"out": str(out), **record}, as_json, lambda _: console.say(sampling.describe(out, record)))


for _name, _info in SAMPLERS.items():
    sample.command(_name, help=f"{_info.summary}. Weights: {_info.weights}.")(paint)
