"""`uhr sample`: paint pictures by any sampler."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from uhr.base import console
from uhr.base.config import apply_sets
from uhr.models.samplers import SAMPLERS, check_name

Json = Annotated[bool, typer.Option("--json", help="Answer as JSON.")]


class SamplerGroup(TyperGroup):
    """Every sampler is a sub-command; so is a class of the user's own by its import path."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        known = super().get_command(ctx, cmd_name)
        if known is not None:
            return known
        check_name(cmd_name)
        return super().get_command(ctx, next(iter(SAMPLERS)))


app = typer.Typer(
    cls=SamplerGroup,
    no_args_is_help=True,
    help="Paint a picture. SAMPLER is one of those below, or a class of your own as package.module:Class.",
    subcommand_metavar="SAMPLER [OPTIONS]",
)


@app.command("list")
def list_samplers(as_json: Json = False) -> None:
    """Every sampler: what it does and which weights it takes."""
    from uhr.models import show

    console.emit(show.samplers(), as_json, show.print_samplers)


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
    from uhr.models.sampling import record
    from uhr.models.sampling.request import Adapter, Item, Request, parse_size
    from uhr.models.sampling.session import Session
    from uhr.models.sampling.setup import Setup

    record.check_out(out)
    request = Request(
        sampler=str(ctx.info_name),
        model=model,
        size=parse_size(size) if size else None,
        steps=steps,
        guidance=guidance,
        adapters=tuple(Adapter.parse(text) for text in adapter or ()),
        dtype=dtype,
        device=device,
        offload=offload,
        quantize=quantize,
        transformer=transformer,
        vae=vae,
        options=apply_sets({}, sets or []),
    )
    setup = Setup.of(request)
    call = setup.call(Item(name=out.stem, prompt=prompt, negative=negative, seed=seed))
    session = Session(setup)
    with console.progress("sample", total=None, unit="calls") as advance:
        painting = session.paint(call, advance)
    record.write(out, painting.picture, painting.record)
    value = {"out": str(out), **painting.record}
    console.emit(value, as_json, lambda _: console.say(record.describe(out, painting.record)))


for _name, _info in SAMPLERS.items():
    app.command(_name, help=f"{_info.summary}. Weights: {_info.weights}.")(paint)
