"""The options of `uhr sample`, in the groups in which its help shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uhr.base.paths import local
from uhr.models.cli import BASE_HELP, COMFYUI_HELP, MODEL_HELP, SPEC_HELP

WHAT, HOW, MODEL, MACHINE, OUTPUT = "What to generate", "How", "Model and adapters", "Machine", "Output"
SET, PLAN = "A set of images", "Plan"

Json = Annotated[bool, typer.Option("--json", help="Answer as JSON.", rich_help_panel=OUTPUT)]

Prompt = Annotated[str | None, typer.Option(help="The text to generate an image of.", rich_help_panel=WHAT)]
Prompts = Annotated[
    Path | None,
    typer.Option(
        parser=local("--prompts"),
        metavar="FILE",
        help="Make a set, an image per prompt: a .txt with one per line; a .jsonl, .csv or .parquet with "
        "prompt and optional name, negative, seed, width, height, image; or a manifest, for its captions.",
        rich_help_panel=SET,
    ),
]
Refine = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Have prompts rewritten first by this OpenAI-compatible server, http://localhost:8000/v1 say; "
        "both are recorded. Its key, if it needs one, is OPENAI_API_KEY.",
        rich_help_panel=SET,
    ),
]
RefineModel = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="With --refine: the model; the server's only one by default.",
        rich_help_panel=SET,
    ),
]
RefineInstruction = Annotated[
    Path | None,
    typer.Option(
        parser=local("--refine-instruction"),
        metavar="FILE",
        help="With --refine: a file with your own instruction for the model.",
        rich_help_panel=SET,
    ),
]
Image = Annotated[
    Path | None,
    typer.Option(
        parser=local("--image", utf8=True),
        metavar="FILE|DIR",
        help="An input image of any size, which replaces the base pass; not every sampler takes one. With a "
        "folder: every image in it.",
        rich_help_panel=WHAT,
    ),
]
Scale = Annotated[
    float | None,
    typer.Option(
        help="With --image: how many times larger the sides of the result are than those of the image. "
        "Default, without --size: 4 for patch-cascade and ultragen, 2 for others.",
        rich_help_panel=WHAT,
    ),
]
Negative = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="What the image should not show. Takes two passes a step; a backbone with embedded guidance "
        "also needs, for example, --set true_cfg_scale=3.5.",
        rich_help_panel=WHAT,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        help="The same seed and options give the same image. In a set: the seed of the first image.",
        rich_help_panel=WHAT,
    ),
]
Size = Annotated[
    str | None,
    typer.Option(metavar="WxH", help="Size in px; default: the size of the sampler.", rich_help_panel=WHAT),
]

Steps = Annotated[
    int | None,
    typer.Option(help="Default: the published number, or the model card's.", rich_help_panel=HOW),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        help="Default: the published number, or the model card's. It applies to the base pass, and "
        "with --image to every stage; for stages above the base, --set guidance_high=7.",
        rich_help_panel=HOW,
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="K=V",
        help="An option of this sampler; may be repeated. `uhr sample options SAMPLER` lists them.",
        rich_help_panel=HOW,
    ),
]

Model = Annotated[
    str | None,
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
ComfyUI = Annotated[
    Path | None,
    typer.Option(
        "--comfyui",
        parser=local("--comfyui", utf8=True),
        metavar="DIR",
        help=f"{COMFYUI_HELP} --adapter may be the name of a LoRA there.",
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
        help="An adapter's folder or file, or RUN@STEP of a training run; may be repeated. Name URAE's 2K "
        "LoRA before its 4K factors.",
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
        metavar="FILE|DIR|s3://...",
        help="Where the image is written: a file (.png, .jpg, .webp) or s3://bucket/image.png. For a set: a "
        "folder or s3://bucket/prefix; the same command resumes the set.",
        rich_help_panel=OUTPUT,
    ),
]
Quality = Annotated[
    str | None,
    typer.Option(
        metavar="1-100|lossless",
        help="Of a .jpg (always 4:4:4) or .webp; default 95. lossless: a WebP with the exact pixels.",
        rich_help_panel=OUTPUT,
    ),
]
Record = Annotated[
    str,
    typer.Option(
        metavar="both|image|json|none",
        help="Where the record of the image is: image (or png), in its file (PNG: a text chunk; JPEG and "
        "WebP: EXIF); json, next to it; both; none.",
        rich_help_panel=OUTPUT,
    ),
]
Plan = Annotated[
    bool,
    typer.Option(
        "--plan",
        help="Only print stages, calls, tokens, operations, memory, time. No weights are needed: "
        "--model may be a name of `uhr models list`. For a set: one image of each size, times the number.",
        rich_help_panel=PLAN,
    ),
]
On = Annotated[
    str | None,
    typer.Option(
        metavar="GPU",
        help="With --plan: the GPU to plan for, such as rtx-4090; default: this machine's, or an h200.",
        rich_help_panel=PLAN,
    ),
]
Previews = Annotated[
    Path | None,
    typer.Option(
        parser=local("--previews"),
        metavar="DIR",
        help="A folder for the images of the stages before the last.",
        rich_help_panel=OUTPUT,
    ),
]

Engine = Annotated[
    str,
    typer.Option(help="For a set: ray, or local for worker processes without Ray.", rich_help_panel=SET),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="For a set: the number of workers, each with the model in memory; by default one per GPU or "
        "one on the CPU. 0: this process.",
        rich_help_panel=SET,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="For a set: a running Ray cluster. Model and OUT must have the same paths on all its machines. "
        "Add --device cuda to use its GPUs.",
        rich_help_panel=SET,
    ),
]
