"""`uhr sample` with `--prompts`, or with a folder as `--image`: a set of images in place of one."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from uhr.base import console
from uhr.base.errors import UserError
from uhr.base.paths import is_url
from uhr.base.store import open_store

if TYPE_CHECKING:
    from uhr.models.generate.request import Item, Request
    from uhr.models.llm.refine import Refinement
    from uhr.runtime.pool import Pool
    from uhr.train.generate.items import Defaults, Entry
    from uhr.train.generate.run import Outcome


def refinement_of(url: str | None, model: str | None, instruction: Path | None) -> Refinement | None:
    """What `--refine` and its companions ask for."""
    if url is None:
        if model is not None or instruction is not None:
            name = "--refine-model" if model is not None else "--refine-instruction"
            raise UserError(f"{name} without --refine", "name the server: --refine http://localhost:8000/v1")
        return None
    from uhr.models.llm.refine import Refinement

    return Refinement(url, model, instruction)


def refuse_workers(pool: Pool) -> None:
    """Raises UserError if there are options for workers: one image is generated in this process."""
    if pool.workers or pool.address is not None:
        name = "--workers" if pool.workers else "--address"
        raise UserError(f"{name} is of a set, and this is one image", "leave it out, or give --prompts")


def is_set(prompts: Path | None, image: Path | None) -> bool:
    """Whether a call makes a set: from a file of prompts, or of a folder of images."""
    return prompts is not None or (image is not None and image.is_dir())


def make_set(
    request: Request,
    said: Item,
    prompts: Path | None,
    out: str | None,
    refinement: Refinement | None,
    previews: Path | None,
    pool: Pool,
    as_json: bool,
) -> None:
    """Make it and say what came of it; UserError at the end where an image could not be made. `said` is what
    the command says of every item.
    """
    if out is None:
        raise UserError("--out is missing", "name a folder for the set, or s3://bucket/prefix")
    if out.lower().endswith(".png"):
        raise UserError(f"--out {out} is one image's, and this makes a set", "name a folder or a prefix")
    from uhr.train.generate.items import Defaults
    from uhr.train.generate.team import device_of, early, runner_of

    entries, left_out = _entries(prompts, said, Defaults(said.negative, said.seed, said.image))
    runner = runner_of(pool, device_of(request))
    with early(runner, len(entries), out):
        # seconds of imports, during which worker processes do theirs
        from uhr.train.generate.run import Order, generate

        order = Order(
            request=request,
            entries=entries,
            out=out,
            fresh=lambda taken: f"use --out {shlex.quote(_free(taken))}",
            runner=runner,
            refinement=refinement,
            previews=previews,
            images=said.image if prompts is None else None,
            left_out=left_out,
        )
        outcome = generate(order)
    console.emit(outcome.facts(), as_json, lambda _: _tell(outcome))
    counts = outcome.info.counts
    if counts["failed"]:
        what = f"{counts['failed']} of {counts['items']} images failed; {outcome.first_error}"
        raise UserError(what, f"see {open_store(out).place('failed')}; the same command tries them again")


def plan_set(request: Request, said: Item, prompts: Path | None, on: str | None, as_json: bool) -> None:
    """Say what the set will take; nothing is painted."""
    from uhr.models.estimate import plan_text, set_plan
    from uhr.models.generate.lengths import token_counts
    from uhr.train.generate.items import Defaults

    if prompts is None:
        said = said.model_copy(update={"prompt": said.prompt or "any"})  # none is needed for a plan
    entries, _ = _entries(prompts, said, Defaults(said.negative, said.seed, said.image))
    groups = set_plan.plan_set(request, entries, on)
    counts = token_counts(groups[0].plan.model, [entry.item for entry in entries])

    def show(_: object) -> None:
        set_plan.show(groups)
        plan_text.show_counts(counts)

    console.emit(set_plan.describe(groups, counts), as_json, show)


def _entries(prompts: Path | None, said: Item, defaults: Defaults) -> tuple[list[Entry], dict[str, int]]:
    """The items, and how much of the source is none, by kind: said in one line for each."""
    from uhr.train.generate.items import from_images, from_prompts
    from uhr.train.generate.prompts import read_prompts, without_caption

    if prompts is None:
        assert said.image is not None
        if not said.prompt:
            raise UserError("--prompt TEXT is missing", "say what the images show, or give --prompts FILE")
        entries, others = from_images(said.image, said.prompt, defaults)
        if others:
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            console.warn(f"{said.image} also holds what is no image by its name: {others[0]}{more}")
        return entries, {"not_images": len(others)}
    if said.prompt:
        raise UserError("--prompt and --prompts", "give one of them")
    if said.image is not None and said.image.is_dir():
        fix = "name each prompt's image in its `image`, or give --prompt TEXT for all images"
        raise UserError(f"--prompts and the folder {said.image}", fix)
    entries = from_prompts(read_prompts(prompts), prompts.parent, defaults)
    bare = without_caption(prompts)
    if bare:
        of = f"{bare:,} of {bare + len(entries):,} kept rows of {prompts}"
        console.warn(f"{of} have no caption, and so are not generated")
    return entries, {"without_caption": bare} if prompts.is_dir() else {}


def _tell(outcome: Outcome) -> None:
    counts, out = outcome.info.counts, outcome.out
    made = console.counted(counts["made"], "image")
    if outcome.before:
        console.say(f"{console.shown(out)} is finished: {made} of the same request")
    else:
        failed = f", {counts['failed']} failed" if counts["failed"] else ""
        console.say(f"{console.shown(out)}: {made}{failed}; {outcome.info.index.path} lists them")
    if cut := counts.get("truncated"):
        of = console.counted(cut, "image")
        console.say(f"the prompts of {of} are longer than is read: `truncated` in {outcome.info.index.path}")
    if counts["made"] and not is_url(out):
        images = Path(out) / "pictures"
        console.say()
        curate = ("curate", "run", "quickstart", "--source", images, "--out", "MANIFEST")
        console.say(f"next: {console.command(*curate)}")


def _free(taken: str) -> str:
    """The first of OUT-2, OUT-3, ... where nothing stands."""
    number = 2
    while open_store(free := f"{taken.rstrip('/')}-{number}").names():
        number += 1
    return free
