"""The options of `uhr sample`, in the groups in which its help shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uhr.base.paths import local
from uhr.models.cli import BASE_HELP, MODEL_HELP, SPEC_HELP

WHAT, HOW, MODEL, MACHINE, OUTPUT = "What to paint", "How", "Model and adapters", "Machine", "Output"
SET, PLAN = "A set of images", "Plan"

Json = Annotated[bool, typer.Option("--json", help="Answer as JSON.", rich_help_panel=OUTPUT)]

Prompt = Annotated[str | None, typer.Option(help="What to paint.", rich_help_panel=WHAT)]
Prompts = Annotated[
    Path | None,
    typer.Option(
        parser=local("--prompts"),
        metavar="FILE",
        help="Make a set, an image per prompt: a .txt with one per line; a .jsonl, .csv or .parquet with "
        "prompt and, if wanted, name, negative, seed, width, height, image; or a manifest, for its captions.",
        rich_help_panel=SET,
    ),
]
Refine = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Have prompts rewritten first by this OpenAI-compatible server, http://localhost:8000/v1 say; "
        "both are recorded. Its key, if it wants one, is OPENAI_API_KEY.",
        rich_help_panel=SET,
    ),
]
RefineModel = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Of --refine: the model; the server's only one if not given.",
        rich_help_panel=SET,
    ),
]
RefineInstruction = Annotated[
    Path | None,
    typer.Option(
        parser=local("--refine-instruction"),
        metavar="FILE",
        help="Of --refine: what the model is told, in place of our own.",
        rich_help_panel=SET,
    ),
]
Image = Annotated[
    Path | None,
    typer.Option(
        parser=local("--image", utf8=True),
        metavar="FILE|DIR",
        help="An image in place of the base pass, of any size; not every sampler takes one. Of a folder, "
        "every image.",
        rich_help_panel=WHAT,
    ),
]
Scale = Annotated[
    float | None,
    typer.Option(
        help="With --image: the result has exactly this many times its sides. If neither this nor --size "
        "is given: 4 for patch-cascade and ultragen, 2 for others.",
        rich_help_panel=WHAT,
    ),
]
Negative = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="What to keep away from. Takes two passes a step; where the backbone has guidance built in, it "
        "wants --set true_cfg_scale=3.5, say.",
        rich_help_panel=WHAT,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        help="The same seed and call give the same image. In a set the first image's; the next has the next.",
        rich_help_panel=WHAT,
    ),
]
Size = Annotated[
    str | None,
    typer.Option(metavar="WxH", help="In px; the sampler's own if not given.", rich_help_panel=WHAT),
]

Steps = Annotated[
    int | None,
    typer.Option(help="The published number, or the model card's, if not given.", rich_help_panel=HOW),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        help="The published number, or the model card's, if not given. It is of the base pass, and with "
        "--image of every stage; --set guidance_high=7, say, is of the stages above the base.",
        rich_help_panel=HOW,
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="K=V",
        help="An option of this sampler alone; may be repeated. `uhr sample options SAMPLER` lists them.",
        rich_help_panel=HOW,
    ),
]

Model = Annotated[
    str,
    typer.Option(
        metavar="DIR|ID|FILE",
        help=MODEL_HELP,
        rich_help_panel=MODEL,
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        metavar="DIR|ID",
        help=BASE_HELP,
        rich_help_panel=MODEL,
    ),
]
Spec = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=SPEC_HELP,
        rich_help_panel=MODEL,
    ),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="PATH[=SCALE]",
        help="An adapter's folder or file; may be repeated. URAE's 4K factors come after its 2K LoRA.",
        rich_help_panel=MODEL,
    ),
]
Transformer = Annotated[
    Path | None,
    typer.Option(
        parser=local("--transformer", utf8=True),
        metavar="PATH",
        help="Other weights of the backbone: a folder, safetensors file or GGUF.",
        rich_help_panel=MODEL,
    ),
]
Vae = Annotated[
    Path | None,
    typer.Option(
        parser=local("--vae", utf8=True),
        metavar="PATH",
        help="Other weights of the VAE: a folder or a file.",
        rich_help_panel=MODEL,
    ),
]

Dtype = Annotated[
    str,
    typer.Option(
        help="float32, bfloat16, float16; auto: bfloat16 on a GPU, float32 on the CPU.",
        rich_help_panel=MACHINE,
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...", rich_help_panel=MACHINE)]
Offload = Annotated[
    str | None,
    typer.Option(
        metavar="KIND",
        help="Keep weights off the GPU: model, group, sequential (least memory, slowest).",
        rich_help_panel=MACHINE,
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        metavar="KIND",
        help="nf4, int8 (bitsandbytes), int8wo, float8wo (torchao).",
        rich_help_panel=MACHINE,
    ),
]

Out = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.png|DIR|s3://...",
        help="The image, here or as s3://bucket/image.png; the whole call goes into it, and into a JSON "
        "beside it. Of a set: a folder or s3://bucket/prefix; the same command goes on where it stopped.",
        rich_help_panel=OUTPUT,
    ),
]
Plan = Annotated[
    bool,
    typer.Option(
        "--plan",
        help="Paint nothing: print stages, calls, tokens, operations, memory, time. No weights are needed: a "
        "bare name of `uhr models list` will do as --model. Of a set: one image's times their number.",
        rich_help_panel=PLAN,
    ),
]
On = Annotated[
    str | None,
    typer.Option(
        metavar="GPU",
        help="Of --plan: for this GPU, rtx-4090 say; else for the one that is here, or an h200.",
        rich_help_panel=PLAN,
    ),
]
Previews = Annotated[
    Path | None,
    typer.Option(
        parser=local("--previews"),
        metavar="DIR",
        help="Also keep the images of the stages before the last, here.",
        rich_help_panel=OUTPUT,
    ),
]

Engine = Annotated[
    str,
    typer.Option(help="Of a set: ray, or local: worker processes of our own.", rich_help_panel=SET),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Of a set: how many paint at a time, each with the model in memory; one per GPU by default, one "
        "on the CPU. 0: this process.",
        rich_help_panel=SET,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="Of a set: a running Ray cluster, which sees model and OUT under the same names; with --device "
        "cuda for its GPUs.",
        rich_help_panel=SET,
    ),
]
