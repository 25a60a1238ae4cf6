"""`uhr sample`: generates images by any sampler, and repeats one from its record."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from uhr.base import console
from uhr.base.config import apply_sets, build
from uhr.base.errors import UserError
from uhr.base.files import user_path
from uhr.base.paths import local
from uhr.base.store import FolderStore
from uhr.models.samplers import SAMPLERS, check_name
from uhr.sample import image_set
from uhr.sample import options as opt

if TYPE_CHECKING:
    from uhr.models.generate.request import Adapter, Item, Request
    from uhr.models.generate.session import GeneratedImage, Session
    from uhr.models.generate.setup import Setup
    from uhr.models.generate.target import Target
    from uhr.models.llm.refine import Refinement

LIST, GENERATE, REPEAT = "Information", "Samplers", "Repeat an image"


class SamplerGroup(TyperGroup):
    """Every sampler is a subcommand, and so is the import path of a user's own class."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        known = super().get_command(ctx, cmd_name)
        if known is not None:
            return known
        check_name(cmd_name)
        return super().get_command(ctx, next(iter(SAMPLERS)))


app = typer.Typer(
    cls=SamplerGroup,
    no_args_is_help=True,
    help="Generate an image. SAMPLER is one of those below, or a class of your own as package.module:Class.",
    subcommand_metavar="SAMPLER [OPTIONS]",
)


@app.callback(invoke_without_command=True)
def again(
    ctx: typer.Context,
    repeat: Annotated[
        Path | None,
        typer.Option(
            parser=local("--repeat"),
            metavar="FILE",
            help="Generate an image again from the record in its file; without a SAMPLER.",
            rich_help_panel=REPEAT,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=local("--out"), metavar="FILE", help="The new image.", rich_help_panel=REPEAT),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|ID", help="Where the model is now, if it was moved.", rich_help_panel=REPEAT
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            metavar="package.module:Class",
            help="The sampler in the record, if it is not one of ours: only then its code is run.",
            rich_help_panel=REPEAT,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer as JSON.", rich_help_panel=REPEAT)] = False,
) -> None:
    if repeat is None:
        if ctx.invoked_subcommand is None:
            raise UserError("no sampler is named", "see `uhr sample list`, or give --repeat IMAGE")
        if out or model or sampler or as_json:
            raise UserError("an option precedes the sampler's name", "write it after the name")
        return
    if ctx.invoked_subcommand is not None:
        raise UserError(f"--repeat {repeat} and the sampler '{ctx.invoked_subcommand}'", "give one of them")
    if out is None:
        raise UserError("--repeat without --out", "name the new image: --out again.png")
    _repeat(repeat, user_path(out), model, sampler, as_json)


@app.command("list", rich_help_panel=LIST)
def list_samplers(as_json: opt.Json = False) -> None:
    """List the samplers: what each does, and which weights it needs."""
    from uhr.models import show

    console.emit(show.samplers(), as_json, _print_samplers)


def _print_samplers(rows: list[dict[str, Any]]) -> None:
    from uhr.models import show

    show.print_samplers(rows)
    console.say(
        "\n`uhr sample SAMPLER --help` has the common options, `uhr sample options SAMPLER` the others"
    )


@app.command("options", rich_help_panel=LIST)
def options_of_sampler(
    sampler: Annotated[str, typer.Argument(metavar="SAMPLER", help="A name of `uhr sample list`.")],
    as_json: opt.Json = False,
) -> None:
    """List the options of one sampler (for --set), with defaults and meanings."""
    from uhr.models.generate import options

    console.emit(options.options_of(sampler), as_json, options.print_options)


def generate(
    ctx: typer.Context,
    *,
    prompt: opt.Prompt = None,
    image: opt.Image = None,
    scale: opt.Scale = None,
    size: opt.Size = None,
    negative: opt.Negative = None,
    seed: opt.Seed = 0,
    out: opt.Out = None,
    quality: opt.Quality = None,
    record: opt.Record = "both",
    previews: opt.Previews = None,
    as_json: opt.Json = False,
    model: opt.Model = None,
    comfyui: opt.ComfyUI = None,
    base: opt.Base = None,
    spec: opt.Spec = None,
    adapters: opt.Adapters = None,
    transformer: opt.Transformer = None,
    vae: opt.Vae = None,
    steps: opt.Steps = None,
    guidance: opt.Guidance = None,
    sets: opt.Sets = None,
    dtype: opt.Dtype = "auto",
    device: opt.Device = "auto",
    offload: opt.Offload = None,
    quantize: opt.Quantize = None,
    plan: opt.Plan = False,
    on: opt.On = None,
    prompts: opt.Prompts = None,
    refine: opt.Refine = None,
    refine_model: opt.RefineModel = None,
    refine_instruction: opt.RefineInstruction = None,
    engine: opt.Engine = "ray",
    workers: opt.Workers = None,
    address: opt.Address = None,
) -> None:
    from uhr.models.cli import model_name
    from uhr.models.generate.adapter_sampling import printed_defaults
    from uhr.models.generate.request import Item, Request, parse_size
    from uhr.models.generate.target import Target

    if prompt is None and prompts is None and image is not None:
        prompt = _prompt_of(image)
    sampler, named = str(ctx.info_name), model_name(model, spec, base, comfyui)
    chosen = [_adapter(text, comfyui) for text in adapters or ()]
    defaults = printed_defaults(chosen, named, sampler, guidance, sets or [])
    tree = {
        "sampler": sampler,
        "model": named.model,
        "base": named.base,
        "spec": named.spec,
        "size": parse_size(size) if size else None,
        "scale": scale,
        "steps": steps,
        "guidance": defaults.guidance if guidance is None else guidance,
        "adapters": chosen,
        "dtype": dtype,
        "device": device,
        "offload": offload,
        "quantize": quantize,
        "transformer": transformer,
        "vae": vae,
        "options": apply_sets({}, [*defaults.sets, *(sets or [])]),
    }
    request = build(Request, tree, "uhr sample")
    item = build(
        Item, {"prompt": prompt or "", "negative": negative, "seed": seed, "image": image}, "uhr sample"
    )
    if plan:
        _plan(request, item, prompts, on, as_json)
        return
    if on is not None:
        raise UserError(f"--on {on} is an option of --plan", "give --plan as well")
    refinement = image_set.refinement_of(refine, refine_model, refine_instruction)
    from uhr.runtime.pool import Pool

    pool = Pool.of(engine, workers, address)
    if image_set.is_set(prompts, image):
        image_set.refuse_encoding(quality, record)
        made = image_set.make_set(request, item, prompts, out, refinement, previews, pool)
        image_set.report(made, as_json)
    else:
        image_set.refuse_workers(pool)
        _one(
            request,
            item,
            Target.of(_checked_out(prompt, out), quality, record),
            refinement,
            previews,
            as_json,
        )


def _adapter(text: str, comfyui: Path | None) -> Adapter:
    """An adapter of the command line: a file, a folder, or the name of a LoRA of ComfyUI."""
    from uhr.models.generate.request import Adapter

    found = Adapter.parse(text)
    if comfyui is None or user_path(found.name).exists():
        return found
    from uhr.models.loading.comfyui.installation import Installation

    return Adapter(name=str(Installation.open(comfyui).lora(found.name)), scale=found.scale)


def _prompt_of(image: Path) -> str | None:
    """The prompt that an image's own file has, with a message; None if there is none."""
    from uhr.models.generate.found_prompt import prompt_of

    found = prompt_of(user_path(image)) if user_path(image).is_file() else None
    if found is None:
        return None
    others = "; its graph has several prompts, this is that of the last sampler" if found.ambiguous else ""
    console.note(f"prompt of {found.source} in {console.shown(image)}: {console.shown(found.text)}{others}")
    return found.text


def _checked_out(prompt: str | None, out: str | None) -> str:
    """The file of the one image. Raises UserError if it or the prompt is missing."""
    if prompt is None or out is None:
        missing = "--prompt TEXT" if prompt is None else "--out FILE"
        raise UserError(f"{missing} is missing", "give it, or --plan for an estimate")
    return out


def _one(
    request: Request,
    item: Item,
    out: Target,
    refinement: Refinement | None,
    previews: Path | None,
    as_json: bool,
) -> None:
    from uhr.models.generate import record
    from uhr.models.generate.refining import refine_one
    from uhr.models.generate.setup import Setup

    out.check(item.image)
    if previews is not None:
        previews = user_path(previews)
        FolderStore(str(previews)).probe()
    setup = Setup.of(request)
    item = item.model_copy(update={"name": out.stem})
    if refinement is not None:
        setup.call(item)  # check the item before the server is called
        item = refine_one(item, refinement)
    generated = _generate_one(setup, item, out, previews)
    console.emit(
        {"out": out.text, **out.recorded(generated.record)},
        as_json,
        lambda _: console.say(record.describe(out.text, generated.record)),
    )


def _plan(request: Request, item: Item, prompts: Path | None, on: str | None, as_json: bool) -> None:
    from uhr.models.estimate import plan_text
    from uhr.models.estimate.plan import plan
    from uhr.models.generate.lengths import token_counts

    if image_set.is_set(prompts, item.image):
        image_set.plan_set(request, item, prompts, on, as_json)
        return
    found = plan(request, item, on)
    counts = token_counts(found.model, [item])

    def show(_: object) -> None:
        plan_text.show(found)
        plan_text.show_counts(counts)

    console.emit(plan_text.describe(found, counts), as_json, show)


def _generate_one(setup: Setup, item: Item, out: Target, previews: Path | None = None) -> GeneratedImage:
    """Generate one image, with a progress bar, and write it with its record and previews."""
    from uhr.models.generate import record

    call = setup.call(item)
    out.check_call(call)
    if previews is not None:
        record.check_stages(record.stage_files(previews, out.stem, setup.preview_names(call)), item.image)
    session = _loaded(setup)
    with console.progress("sample", total=None, unit="calls") as advance:
        generated = session.generate(call, advance, stages=previews is not None)
    if previews is not None:
        record.write_stages(previews, out.stem, generated.stages)
    out.write(generated.image, out.recorded(generated.record))
    return generated


def _loaded(setup: Setup) -> Session:
    """Load the setup's pipeline, with a progress bar."""
    from uhr.models.generate.session import Session

    with console.progress("load", total=None, unit="parts") as advance:
        session = Session(setup, advance)
    setup.hash_weights()
    return session


def _repeat(image: Path, out: Path, model: str | None, sampler: str | None, as_json: bool) -> None:
    from uhr.models.generate import record, repeat
    from uhr.models.generate.setup import Setup

    then, original = record.read_record(image), repeat.original_image(image)
    request, item = repeat.recorded_request(then, str(image), model, sampler)
    repeat.check_out(out, image, item)
    target, stored = repeat.target_of(out, then, str(image))
    repeat.check_files(request, item)
    request, lines = repeat.on_this_machine(request)
    setup = Setup.of(request, fetch=repeat.may_fetch(model))
    call = setup.call(item)
    target.check_call(call)
    session = _loaded(setup)
    lines += repeat.differences(then, setup, call)
    for line in lines:
        console.warn(line)
    with console.progress("sample", total=None, unit="calls") as advance:
        generated = session.generate(call, advance)
    try:
        # before anything is written
        found = None if original is None else repeat.compare(original, generated.image, stored)
    finally:
        target.write(generated.image, target.recorded(generated.record))
    comparison = {"identical": None} if found is None else found.describe()
    verdict = "there is no original image to compare with" if found is None else str(found)
    value = {"out": str(out), "differences": lines, **comparison, "record": generated.record}
    console.emit(
        value, as_json, lambda _: console.say(f"{record.describe(out, generated.record)}\n{verdict}")
    )


for _name, _info in SAMPLERS.items():
    _help = (
        f"{_info.summary[:1].upper()}{_info.summary[1:]}.",
        f"Weights: {_info.weights}.",
        f"Options of this sampler (--set): `uhr sample options {_name}`.",
    )
    app.command(_name, help="\n\n".join(_help), rich_help_panel=GENERATE)(generate)
