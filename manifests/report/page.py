"""The report page: collect the content of each section, and fill in the template."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import duckdb
import pyarrow as pa
import yaml

from uhr.base.console import Advance, progress
from uhr.base.errors import UserError
from uhr.base.formatting import number
from uhr.base.pages.template import template
from uhr.base.paths import in_store
from uhr.base.store import output_file
from uhr.manifests.lineage import lineage, summary
from uhr.manifests.manifest import Manifest
from uhr.manifests.parts import REPORT
from uhr.manifests.places import check_outside
from uhr.manifests.report import gallery
from uhr.manifests.report.charts import HEIGHT, WIDTH, Histogram, histogram
from uhr.manifests.report.coverage import coverage, faults
from uhr.manifests.report.duplicates import duplicates
from uhr.manifests.report.maps import SIDE, maps
from uhr.manifests.report.scatter import scatter, score_names
from uhr.manifests.report.thresholds import Threshold, condition_of, thresholds
from uhr.manifests.schema import STATUSES, Column
from uhr.manifests.sql import quoted
from uhr.manifests.stats import Stats, compute, numeric_of

if TYPE_CHECKING:
    import jinja2

Place = TypeVar("Place", bound=Path | str)
HERE = Path(__file__).parent
CAPTION = re.compile(r"(.*_)?captions?(_.*)?|prompt")
"""Names of columns of captions."""

DERIVED = {
    "slice": "Slice",
    "union": "Union",
    "difference": "Difference",
    "review": "Reviewed set",
    "encode": "Encoded set",
}
"""What a manifest is called that has the rows of others, by the kind of its operation."""

LARGEST = 25_000_000
"""Bytes of a page."""

DUPLICATES = 3_000_000
"""Bytes of a page that groups of duplicates take."""

MOST_HISTOGRAMS = 80
"""The largest number of histograms, each of up to 20 kB."""


def write_report(manifest: Manifest, out: Place) -> Place:
    """Write the report on `manifest` to the file `out`, a path or an address, atomically. The same manifest
    gives the same bytes.

    The page is self-contained, with styles, images and charts, and readable without its script. Raises
    UserError if `out` is a folder, is inside a manifest and not its `report.html`, or cannot be written.
    """
    if not in_store(out) and Path(out).is_dir():
        raise UserError(f"--out {out} is a folder", "name an HTML file")
    if in_store(out):
        check_outside(out.removesuffix(f"/{REPORT}"))  # the report of a manifest is beside its manifest.json
    else:
        check_outside(Path(out).parent if Path(out).name == REPORT else Path(out))
    with output_file(out, "free space there, or name another file with --out", REPORT) as temporary:
        temporary.write_text(render(manifest), encoding="utf-8")
    return out


def render(manifest: Manifest) -> str:
    """Return the page as HTML. Every value is escaped by the template engine; nothing is marked safe.

    It has at most LARGEST bytes in UTF-8: with fewer images where texts take much of it.
    """
    page = _template()
    with progress("report", 4, "steps") as advance:
        content = _content(manifest, advance)
        names = content["scores"]
        for budget in (gallery.BUDGET, gallery.BUDGET // 4, 0):
            images = gallery.groups(manifest, names, budget)
            html = page.render(groups=images, **content)
            if len(html.encode()) <= LARGEST:
                break
        advance()
    return html


def _content(manifest: Manifest, advance: Advance) -> dict[str, Any]:
    """Return everything that the template shows but the gallery."""
    info = manifest.info
    stats = compute(manifest)
    advance()
    cuts = _thresholds(manifest)
    charts = _histograms(manifest, stats, cuts)
    names = score_names([cut.column for cut in cuts], [chart.column.name for chart in charts])
    advance()
    with manifest.connect() as connection:
        parts = {
            "faults": faults(connection),
            "coverage": coverage(connection, manifest),
            "maps": maps(connection, manifest.schema.names),
            "captions": _captions(connection, manifest),
            "scatter": scatter(connection, names, cuts),
            "alike": duplicates(connection, manifest, gallery.Spent(DUPLICATES)),
        }
    advance()
    return {
        **parts,
        "info": info,
        "query": _query(manifest.path),
        "title": _title(manifest),
        "counts": info.counts,
        "stats": stats,
        "highlights": _highlights(stats),
        "unfinished": info.operation.get("unfinished"),
        "made": DERIVED.get(info.operation.get("kind", ""), ""),
        "rules": stats.rules,
        "histograms": charts[:MOST_HISTOGRAMS],
        "more_histograms": max(0, len(charts) - MOST_HISTOGRAMS),
        "chart": (WIDTH, HEIGHT),
        "side": SIDE,
        "statuses": STATUSES,
        "scores": names,
        "aspects": stats.aspects,
        "chain": [link | {"what": summary(link.get("operation", {}))} for link in lineage(manifest.path)],
        "operation": yaml.safe_dump(info.operation, sort_keys=False, allow_unicode=True, width=100),
    }


@functools.cache
def _template() -> jinja2.Template:
    """Compile the page's template, once: it takes 0.1 s. Raises UserError if jinja2 is not installed."""
    return template(HERE / "report.html", extra="curate")


def _query(path: Path) -> str:
    """Return the command that counts the rows of the manifest in the folder `path`, for any name."""
    folder = "".join(f"[{c}]" if c in "[*?" else c for c in str(path)).replace("'", "''")
    table = f"read_parquet('{folder}/samples/*.parquet', hive_partitioning = false)"
    return shlex.join(["duckdb", "-c", f"SELECT reason, count(*) FROM {table} GROUP BY ALL"])


def _title(manifest: Manifest) -> str:
    operation = manifest.info.operation
    pipeline = operation.get("pipeline")
    if isinstance(pipeline, dict) and pipeline.get("name"):
        return str(pipeline["name"])
    return manifest.path.resolve().name


def _highlights(stats: Stats) -> list[tuple[str, str]]:
    """Return the numbers for the top of the page, of the columns that exist."""
    columns = {column.name: column for column in stats.numeric if column.coverage}
    result = []
    for name, label in (("megapixels", "median Mpx"), ("entropy", "median entropy, bit")):
        if name in columns:
            result.append((number(columns[name].quantiles["p50"]), label))
    splits = [column for column in stats.text if column.name == "split"]
    return result + [(number(n), f"in split {name}") for column in splits for name, n in column.top.items()]


def _thresholds(manifest: Manifest) -> list[Threshold]:
    """Return the thresholds of the rules that were evaluated."""
    found = []
    for rule in manifest.info.rules:
        condition = condition_of(rule)
        if condition is not None and rule.state == "evaluated":
            found += thresholds(condition)
    return found


def _histograms(manifest: Manifest, stats: Stats, cuts: Sequence[Threshold]) -> list[Histogram]:
    """Return one histogram per numeric column that varies, first those that rules compare."""
    ruled = [cut.column for cut in cuts]
    columns = {column.name: column for column in manifest.columns}
    numeric = sorted(stats.numeric, key=lambda column: column.name not in ruled)
    with manifest.connect() as connection:
        varied = [one for one in numeric if one.coverage and one.least != one.greatest]
        charts = [histogram(connection, columns[one.name], one, cuts) for one in varied]
    return [chart for chart in charts if chart is not None]


def _captions(connection: duckdb.DuckDBPyConnection, manifest: Manifest) -> list[Histogram]:
    """Return a histogram of the number of words for each column of captions."""
    found = []
    for column in manifest.columns:
        if not (pa.types.is_string(column.type) and CAPTION.fullmatch(column.name)):
            continue
        words = f"length(string_split_regex(trim({quoted(column.name)}), '\\s+'))::DOUBLE"
        words = f"CASE WHEN trim({quoted(column.name)}) <> '' THEN {words} END"
        lengths = Column(column.name, pa.int32(), f"words: {column.meaning}", "words")
        chart = histogram(connection, lengths, numeric_of(connection, column.name, "words", words), [], words)
        found += [] if chart is None else [chart]
    return found
