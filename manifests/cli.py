"""`uhr manifest`: show a manifest, verify it, slice it, write its report."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from uhr.base import console
from uhr.base.errors import UserError, load_object, unknown
from uhr.base.paths import anywhere, in_store

app = typer.Typer(no_args_is_help=True, help="Show a manifest, verify it, slice it.")


def _place(name: str, metavar: str, help: str) -> Any:
    """Return the option `name` for a path or an address."""
    return typer.Option(name, parser=anywhere(name), metavar=metavar, help=help)


Folder = Annotated[
    Any, typer.Argument(parser=anywhere("M"), metavar="M", help="Folder or s3:// address of the manifest.")
]
Out = Annotated[Any, _place("--out", "DIR", "Folder or s3:// address to write.")]
Where = Annotated[str | None, typer.Option(help="SQL condition over the columns.")]
Json = Annotated[bool, typer.Option("--json", help="Answer as JSON.")]


UNFINISHED: str | None = None
"""Import path of a function that writes the rows of an unfinished run as a manifest. `uhr.cli` sets it."""

EMBEDDER: str | None = None
"""Import path of a function of (weights, image file or text) that returns a vector [D]. `uhr.cli` sets it:
this package knows no models.
"""


VERDICTS: str | None = None
"""Import path of a function of a manifest that yields a fault for each verdict that its rules do not give.
`uhr.cli` sets it.
"""


EXPLAINER: str | None = None
"""Import path of a function of a manifest and a row that returns its verdict, columns and rules. `uhr.cli`
sets it: the rules are evaluated by curation.
"""


ENCODED: tuple[str, str] | None = None
"""Import paths of the functions that take samples out of encoded data (`forget.redact.Encoded`, `Sealed`).
`uhr.cli` sets them.
"""


@app.command()
def show(path: Folder, as_json: Json = False) -> None:
    """Show counts by verdict, the funnel per rule, quantiles and coverage of every column."""
    from dataclasses import asdict

    from uhr.manifests.manifest import Manifest
    from uhr.manifests.show import print_stats
    from uhr.manifests.stats import compute

    manifest = Manifest.open(path)
    stats = compute(manifest)
    of = None if manifest.parent is None else manifest.parent.name
    console.emit({**asdict(stats), "by_reference": of}, as_json, lambda _: print_stats(manifest, stats))


@app.command("slice")
def slice_(
    path: Folder,
    out: Out,
    where: Where = None,
    similar: Annotated[
        str | None,
        typer.Option(
            metavar="QUERY=K",
            help="Keep the K nearest to a sample, a .npy file, or with --clip a text or image.",
        ),
    ] = None,
    clip: Annotated[
        str | None, typer.Option(metavar="WEIGHTS", help="The CLIP model that embeds the query of --similar.")
    ] = None,
    embedding: Annotated[
        str, typer.Option(metavar="COL", help="The column of vectors for --similar and --diverse.")
    ] = "clip_embedding",
    top: Annotated[
        list[str] | None,
        typer.Option(metavar="COL=SIZE", help="Keep the highest of a column: artimuse=5% or artimuse=1000."),
    ] = None,
    per: Annotated[
        str | None, typer.Option(metavar="COL,...", help="With --top: the highest of each value of COL.")
    ] = None,
    diverse: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="Keep K rows that cover the others by embedding.")
    ] = None,
    stratify: Annotated[
        str | None,
        typer.Option(metavar="COL,...", help="Draw the sample so that each value of COL keeps its share."),
    ] = None,
    balance: Annotated[
        str | None, typer.Option(metavar="COL", help="Draw equally many rows of each value of COL.")
    ] = None,
    sample: Annotated[int | None, typer.Option(metavar="N", help="Draw N of the remaining rows.")] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME=SHARE,...", help="Add a column `split`: train=0.9,val=0.1.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The draw depends only on this and the sample ids.")] = 0,
    status: Annotated[str, typer.Option(help="Rows to slice: kept, rejected, failed or any.")] = "kept",
    materialise: Annotated[
        str,
        typer.Option(metavar="WHAT", help="rows, also pixels, or none: a slice by reference to its parent."),
    ] = "rows",
    as_json: Json = False,
) -> None:
    """Write a smaller manifest. Steps, in this order: --status, --where, --similar, --top, --diverse,
    --stratify, --balance, --sample, --split.
    """
    from uhr.manifests.manifest import Manifest
    from uhr.manifests.schema import STATUSES
    from uhr.manifests.selection.options import (
        MATERIALISED,
        SliceOptions,
        parse_columns,
        parse_similar,
        parse_split,
        parse_top,
    )
    from uhr.manifests.selection.slicing import slice_manifest

    if status not in (*STATUSES, "any"):
        raise unknown("status", status, (*STATUSES, "any"), "--status")
    if materialise not in MATERIALISED:
        raise unknown("value", materialise, MATERIALISED, "--materialise")
    parent = Manifest.open(path)
    near, query = None, None
    if similar is not None:
        from uhr.manifests.selection.embeddings import Vectors, query_of

        embed = None
        if clip is not None:
            assert EMBEDDER is not None, "uhr.cli names it"
            embed = functools.partial(load_object(EMBEDDER, "embedder"), clip)
        near, query = query_of(Vectors(parent, embedding), parse_similar(similar), embed)
    elif clip is not None:
        raise UserError("--clip without --similar", "add --similar 'a lake=100'")
    options = SliceOptions.model_validate(
        {
            "status": status,
            "where": where,
            "similar": near,
            "diverse": diverse,
            "embedding": embedding,
            "top": parse_top(top or (), per) or None,
            "stratify": parse_columns(stratify, "--stratify") if stratify is not None else None,
            "balance": balance,
            "sample": sample,
            "split": parse_split(split) if split is not None else None,
            "seed": seed,
            "materialise": materialise,
        }
    )
    made = _finished(out, options.operation(), (parent,))
    finished = made is not None
    if made is None:
        with console.progress("slice", parent.info.counts["rows"], "rows") as advance:
            made = slice_manifest(parent, out, options, advance, query)
    _say_written(out, made, finished, as_json)


def _finished(out: Any, operation: dict[str, Any], parents: Sequence[Any]) -> Any:
    """The manifest at `out` if it was made of these parents by this operation; None if there is no manifest.
    Raises UserError if it is another one.
    """
    from uhr.manifests.manifest import Manifest
    from uhr.manifests.places import is_manifest_at

    if not is_manifest_at(out):
        return None
    made = Manifest.open(out)
    if made.info.operation != operation or [p.id for p in made.info.parents] != [p.id for p in parents]:
        raise UserError(f"{out} already contains another manifest", "name another folder with --out")
    return made


def _say_written(out: Any, made: Any, finished: bool, as_json: bool) -> None:
    facts = _slice_facts(made)
    verb = "is already finished:" if finished else "contains"
    console.emit(facts, as_json, lambda _: console.say(console.shown(f"{out} {verb} {_summary(facts)}")))


def _slice_facts(made: Any) -> dict[str, Any]:
    facts = {"path": made.name, "id": made.id, "counts": made.info.counts}
    if made.info.operation.get("split"):
        with made.connect() as connection:
            query = "SELECT split, count(*) FROM samples GROUP BY split ORDER BY split"
            facts["split"] = dict(connection.sql(query).fetchall())
    return facts


def _summary(facts: dict[str, Any]) -> str:
    parts = [f"{facts['counts']['rows']} rows"]
    if "split" in facts:
        parts.append(", ".join(f"{name} {count}" for name, count in facts["split"].items()))
    return "; ".join([*parts, f"id {facts['id'][:16]}"])


@app.command()
def union(
    manifests: Annotated[
        list[str], typer.Argument(metavar="A B...", help="Manifests: folders or s3:// addresses.")
    ],
    out: Out,
    prefer: Annotated[
        str | None,
        typer.Option(metavar="first", help="Take the values of the first manifest where rows disagree."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the rows of all manifests, each sample once. Rows that disagree are an error, or see --prefer."""
    from uhr.manifests.manifest import Manifest
    from uhr.manifests.selection import sets

    if prefer not in (None, "first"):
        raise unknown("value", prefer, ("first",), "--prefer")
    if len(manifests) < 2:
        raise UserError("a union needs at least two manifests", "name another one")
    opened = [Manifest.open(anywhere("A B...")(each)) for each in manifests]
    made = _finished(out, sets.union_operation(prefer), opened)
    finished = made is not None
    if made is None:
        total = sum(each.info.counts["rows"] for each in opened)
        with console.progress("union", total, "rows") as advance:
            made = sets.union(opened, out, prefer, advance)
    _say_written(out, made, finished, as_json)


@app.command()
def difference(
    a: Annotated[Any, typer.Argument(parser=anywhere("A"), metavar="A", help="The manifest with the rows.")],
    b: Annotated[Any, typer.Argument(parser=anywhere("B"), metavar="B", help="The rows to leave out.")],
    out: Out,
    as_json: Json = False,
) -> None:
    """Write the rows of A whose sample ids are not in B."""
    from uhr.manifests.manifest import Manifest
    from uhr.manifests.selection import sets

    opened = (Manifest.open(a), Manifest.open(b))
    made = _finished(out, sets.DIFFERENCE, opened)
    finished = made is not None
    if made is None:
        with console.progress("difference", opened[0].info.counts["rows"], "rows") as advance:
            made = sets.difference(*opened, out, advance)
    _say_written(out, made, finished, as_json)


@app.command()
def verify(
    path: Folder,
    pixels: Annotated[bool, typer.Option("--pixels", help="Also hash the source files again.")] = False,
    rules: Annotated[
        bool, typer.Option("--rules", help="Also evaluate the rules again, and compare the verdicts.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check parts, id, schema, rows and previews; every fault is listed, and any makes the exit code 1."""
    from dataclasses import asdict

    from uhr.manifests.places import info_at
    from uhr.manifests.show import print_verify_result
    from uhr.manifests.verify.verification import verify as check

    assert VERDICTS is not None, "uhr.cli names it"
    judge = load_object(VERDICTS, "verdicts") if rules else None
    if pixels:
        with console.progress("hash", info_at(path).counts["rows"], "files") as advance:
            verdict = check(path, pixels=True, rules=judge, advance=advance)
    else:
        verdict = check(path, rules=judge)
    console.emit(asdict(verdict), as_json, lambda _: print_verify_result(verdict))
    if verdict.faults:
        raise typer.Exit(1)


@app.command()
def audit(
    path: Folder,
    out: Annotated[Any, _place("--out", "FILE", "File or s3:// address to write: .parquet or .csv.")],
    where: Where = None,
    as_json: Json = False,
) -> None:
    """Write a line per image and rule: value, threshold, stage version, weights, time, rights, reviewer."""
    from dataclasses import asdict

    from uhr.manifests.manifest import Manifest
    from uhr.manifests.verify.audit import audit as write

    manifest = Manifest.open(path)
    with console.progress("audit", manifest.info.counts["rows"], "rows") as advance:
        done = write(manifest, out, where, advance)
    text = f"{done.path} contains {done.lines:,} lines of {done.images:,} images"
    console.emit(asdict(done), as_json, lambda _: console.say(console.shown(text)))


@app.command()
def forget(
    path: Folder,
    ids: Annotated[str | None, typer.Option(metavar="ID,...", help="Sample ids.")] = None,
    where: Where = None,
    url: Annotated[str | None, typer.Option(help="The address that an image came from, or its uri.")] = None,
    author: Annotated[str | None, typer.Option(help="The author, as the column has it.")] = None,
    hash_: Annotated[str | None, typer.Option("--hash", help="SHA-256 of the file.")] = None,
    below: Annotated[
        list[str] | None,
        typer.Option("--in", metavar="DIR", help="Look for what was made from the samples in here too."),
    ] = None,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be taken out.")] = False,
    as_json: Json = False,
) -> None:
    """Take samples, their crops and near-duplicates out of a manifest and all that its chain has of them."""
    from dataclasses import asdict

    from uhr.manifests.forget import job
    from uhr.manifests.forget.targets import ForgetRequest
    from uhr.manifests.selection.options import parse_columns
    from uhr.manifests.show import print_forgotten

    given = {"where": where, "url": url, "author": author, "hash": hash_}
    request = ForgetRequest(ids=None if ids is None else parse_columns(ids, "--ids"), **given)
    encoded = None
    if ENCODED is not None:
        encoded = (load_object(ENCODED[0], "function"), load_object(ENCODED[1], "function"))
    folders = [anywhere("--in")(each) for each in below or ()]
    with console.progress("forget", None, "manifests, exports, reports") as advance:
        done = job.forget(
            path, request, folders, reason=reason, dry_run=dry_run, encoded=encoded, advance=advance
        )
    console.emit(asdict(done), as_json, lambda _: print_forgotten(done))


@app.command()
def lineage(path: Folder, as_json: Json = False) -> None:
    """Show the chain of manifests that this one was made from: configuration, weights, versions, licences."""
    from uhr.manifests.lineage import lineage as walk
    from uhr.manifests.manifest import Manifest
    from uhr.manifests.show import print_lineage
    from uhr.manifests.stats import licences

    chain = walk(path)
    # of this manifest: the rows of its parents may be others. A slice by reference has them from its parent
    with contextlib.suppress(UserError):
        chain[0]["licences"] = licences(Manifest.open(path))
    console.emit(chain, as_json, print_lineage)


@app.command()
def history(
    path: Folder,
    sample: Annotated[str, typer.Argument(metavar="SAMPLE", help="Sample id, its beginning, or a uri.")],
    below: Annotated[
        Any, _place("--in", "DIR", "Also manifests in DIR or below an s3:// address made from these.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Follow one sample from its origin through every manifest that has it: verdict, and what changed."""
    from dataclasses import asdict

    from uhr.manifests.compare.history import history as steps_of
    from uhr.manifests.manifest import Manifest
    from uhr.manifests.show import print_history

    steps = steps_of(Manifest.open(path), sample, below)
    console.emit([asdict(step) for step in steps], as_json, lambda _: print_history(steps))


@app.command()
def diff(
    a: Annotated[Any, typer.Argument(parser=anywhere("A"), metavar="A", help="The manifest before.")],
    b: Annotated[Any, typer.Argument(parser=anywhere("B"), metavar="B", help="The manifest after.")],
    as_json: Json = False,
) -> None:
    """Show which rows, columns and rules changed, and why verdicts moved."""
    from dataclasses import asdict

    from uhr.manifests.compare.diff import diff as compare
    from uhr.manifests.manifest import Manifest
    from uhr.manifests.show import print_diff

    found = compare(Manifest.open(a), Manifest.open(b))
    console.emit({**asdict(found), "same": found.same}, as_json, lambda _: print_diff(found))


@app.command()
def report(
    path: Folder,
    out: Annotated[Any, _place("--out", "FILE", "HTML file or s3:// address; default M/report.html.")] = None,
) -> None:
    """Write one self-contained HTML page: funnel, histograms, gallery with the reason on each image."""
    from uhr.manifests import places
    from uhr.manifests.manifest import Manifest
    from uhr.manifests.parts import REPORT
    from uhr.manifests.report import write_report

    if places.is_unfinished_at(path):
        with tempfile.TemporaryDirectory(prefix="uhr-report-") as folder:
            rows = load_object(UNFINISHED or "", "reader of unfinished runs")(path, Path(folder))
            beside = f"{path}/{REPORT}" if isinstance(path, str) else path / REPORT
            console.say(console.shown(write_report(rows, out or beside)))
        return
    manifest = Manifest.open(path)
    beside = f"{manifest.name}/{REPORT}" if in_store(manifest.name) else manifest.path / REPORT
    console.say(console.shown(write_report(manifest, out or beside)))


@app.command()
def browse(
    path: Folder,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 is a free one.")] = 0,
    into: Annotated[
        Any, _place("--into", "DIR", "Folder or s3:// address for new manifests; default beside M.")
    ] = None,
    reviews: Annotated[
        Any,
        _place("--reviews", "FILE", "Journal of reviews, also s3://; default M-reviews.jsonl beside M."),
    ] = None,
    materialise: Annotated[
        Literal["rows", "none"],
        typer.Option(metavar="WHAT", help="Of new manifests: rows, or none: by reference to M."),
    ] = "rows",
    as_json: Json = False,
) -> None:
    """Serve a page on this machine to filter, sort, look at and review all rows, until Ctrl-C."""
    from uhr.manifests.browse.reviews import Journal
    from uhr.manifests.browse.server import BrowseServer
    from uhr.manifests.browse.session import Session, beside, place_text, short_name
    from uhr.manifests.manifest import Manifest

    assert EXPLAINER is not None, "uhr.cli names it"
    manifest = Manifest.open(path)
    journal = Journal(reviews or beside(manifest, f"{short_name(manifest)}-reviews.jsonl"), manifest)
    into = into or beside(manifest)
    session = Session(manifest, into, journal, load_object(EXPLAINER, "explainer"), materialise)
    with BrowseServer(session, port) as server:
        facts = {"url": server.url, "reviews": journal.place, "into": place_text(into)}
        console.emit(facts, as_json, lambda _: console.say(f"{server.url}  (Ctrl-C ends it)"))
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            if not as_json:
                console.say(f"stopped; reviews: {len(journal.reviews):,}")


@app.command()
def export(
    path: Folder,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="webdataset, hf, folder, pairs, kohya, simpletuner, or an import path.",
        ),
    ],
    out: Out,
    captions: Annotated[
        str,
        typer.Option(metavar="COL,...", help="Columns of captions: the first that is not empty is taken."),
    ] = "caption",
    shard_mb: Annotated[int, typer.Option(min=1, metavar="MB", help="Image files per shard, in MB.")] = 1000,
    as_json: Json = False,
) -> None:
    """Write the images of the kept rows as files that other programs read. A killed export resumes."""
    from dataclasses import asdict

    from uhr.manifests.export import format_named
    from uhr.manifests.export.base import ExportOptions
    from uhr.manifests.export.job import ExportRequest
    from uhr.manifests.export.job import export as run
    from uhr.manifests.manifest import Manifest
    from uhr.manifests.selection.options import parse_columns
    from uhr.manifests.show import print_export

    parent = Manifest.open(path)
    options = ExportOptions(captions=parse_columns(captions, "--captions"), shard_bytes=shard_mb * 1_000_000)
    request = ExportRequest(parent, out, format_named(to)(parent), options)
    with console.progress("export", parent.info.counts["kept"], "images") as advance:
        result = run(request, advance)
    console.emit(asdict(result), as_json, lambda _: print_export(result))
    if result.failed:
        raise typer.Exit(1)
