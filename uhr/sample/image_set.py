"""`uhr sample` for a set of images: with `--prompts`, or with a folder as `--image`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from uhr.base import console
from uhr.base.errors import UserError
from uhr.base.paths import is_url
from uhr.base.run_folder import free_name
from uhr.base.store import open_store

if TYPE_CHECKING:
    from uhr.models.generate.request import Item, Request
    from uhr.models.llm.refine import Refinement
    from uhr.runtime.pool import Pool
    from uhr.train.generate.items import Defaults, Entry
    from uhr.train.generate.run import SetResult


def refinement_of(url: str | None, model: str | None, instruction: Path | None) -> Refinement | None:
    """The refinement that `--refine` and its companions describe, if any."""
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
        raise UserError(
            f"{name} is an option for sets, and this is one image", "leave it out, or give --prompts"
        )


def refuse_encoding(quality: str | None, record: str) -> None:
    """Raise UserError for options of one image's file: a set consists of PNGs with their records."""
    if quality is not None or record != "both":
        name = f"--quality {quality}" if quality is not None else f"--record {record}"
        raise UserError(
            f"{name} is an option for one image", "leave it out: a set has PNGs, with records beside them"
        )


def is_set(prompts: Path | None, image: Path | None) -> bool:
    """Whether a command makes a set: from a file of prompts, or a folder of images."""
    return prompts is not None or (image is not None and image.is_dir())


def make_set(
    request: Request,
    item: Item,
    prompts: Path | None,
    out: str | None,
    refinement: Refinement | None,
    previews: Path | None,
    pool: Pool,
) -> SetResult:
    """Generate a set. `item` has the values of the command line, for all items."""
    if out is None:
        raise UserError("--out is missing", "name a folder for the set, or s3://bucket/prefix")
    if out.lower().endswith((".png", ".jpg", ".jpeg", ".webp")):
        raise UserError(f"--out {out} is a file, and this makes a set", "name a folder or a prefix")
    from uhr.train.generate.items import Defaults
    from uhr.train.generate.workers import device_of, runner_of, started_early

    entries, left_out = _entries(prompts, item, Defaults(item.negative, item.seed, item.image))
    runner = runner_of(pool, device_of(request))
    with started_early(runner, len(entries), out):
        # seconds of imports, in parallel with those of the workers
        from uhr.train.generate.run import SetJob, generate

        job = SetJob(
            request=request,
            entries=entries,
            out=out,
            other_out=lambda taken: f"use --out {shlex.quote(free_name(taken, _is_taken))}",
            runner=runner,
            refinement=refinement,
            previews=previews,
            images=item.image if prompts is None else None,
            left_out=left_out,
        )
        return generate(job)


def report(result: SetResult, as_json: bool) -> None:
    """Print the result of a set. Raises UserError at the end if an image failed."""
    console.emit(result.facts(), as_json, lambda _: _print_result(result))
    counts = result.info.counts
    if counts["failed"]:
        what = f"{counts['failed']} of {counts['items']} images failed; {result.first_error}"
        failed = open_store(result.out).place("failed")
        raise UserError(what, f"see {failed}; the same command tries them again")


def plan_set(request: Request, item: Item, prompts: Path | None, on: str | None, as_json: bool) -> None:
    """Print an estimate of the set; nothing is generated."""
    from uhr.models.estimate import plan_text, set_plan
    from uhr.models.generate.lengths import token_counts
    from uhr.train.generate.items import Defaults

    if prompts is None:
        item = item.model_copy(update={"prompt": item.prompt or "any"})  # none is needed for a plan
    entries, _ = _entries(prompts, item, Defaults(item.negative, item.seed, item.image))
    groups = set_plan.plan_set(request, entries, on)
    counts = token_counts(groups[0].plan.model, [entry.item for entry in entries])

    def show(_: object) -> None:
        set_plan.show(groups)
        plan_text.show_counts(counts)

    console.emit(set_plan.describe(groups, counts), as_json, show)


def _entries(prompts: Path | None, item: Item, defaults: Defaults) -> tuple[list[Entry], dict[str, int]]:
    """The items, and by kind how much of the source gave none, with a warning for each kind."""
    from uhr.train.generate.items import from_images, from_prompts
    from uhr.train.generate.prompts import read_prompts, without_caption

    if prompts is None:
        assert item.image is not None
        if not item.prompt:
            raise UserError("--prompt TEXT is missing", "describe the images, or give --prompts FILE")
        entries, others = from_images(item.image, item.prompt, defaults)
        if others:
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            console.warn(f"{item.image} also contains files without an image suffix: {others[0]}{more}")
        return entries, {"not_images": len(others)}
    if item.prompt:
        raise UserError("--prompt and --prompts", "give one of them")
    if item.image is not None and item.image.is_dir():
        fix = "name each prompt's image in its `image`, or give --prompt TEXT for all images"
        raise UserError(f"--prompts and the folder {item.image}", fix)
    entries = from_prompts(read_prompts(prompts), prompts.parent, defaults)
    bare = without_caption(prompts)
    if bare:
        of = f"{bare:,} of {bare + len(entries):,} kept rows of {prompts}"
        console.warn(f"{of} have no caption, and so are not generated")
    return entries, {"without_caption": bare} if prompts.is_dir() else {}


def _print_result(result: SetResult) -> None:
    counts, out = result.info.counts, result.out
    made = console.counted(counts["made"], "image")
    if result.finished_before:
        console.say(f"{console.shown(out)} is finished: {made} of the same request")
    else:
        failed = f", {counts['failed']} failed" if counts["failed"] else ""
        console.say(f"{console.shown(out)}: {made}{failed}; {result.info.index.path} lists them")
    if cut := counts.get("truncated"):
        of = console.counted(cut, "image")
        console.say(
            f"the prompts of {of} are longer than the encoder reads: `truncated` in {result.info.index.path}"
        )
    if counts["made"] and not is_url(out):
        images = Path(out) / "pictures"
        console.say()
        curate = ("curate", "run", "quickstart", "--source", images, "--out", "MANIFEST")
        console.say(f"next: {console.command(*curate)}")


def _is_taken(out: str) -> bool:
    return bool(open_store(out).names())
