"""The report page: collect the content of each section, and fill in the template."""

from __future__ import annotations

import functools
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from uhr.base.console import progress, shown
from uhr.base.errors import UserError, install, one_line
from uhr.base.files import atomic, saving
from uhr.base.formatting import first_words, number, share
from uhr.manifests.lineage import lineage, summary
from uhr.manifests.manifest import Manifest
from uhr.manifests.report.charts import HEIGHT, WIDTH, Histogram, histogram
from uhr.manifests.report.gallery import groups
from uhr.manifests.report.thresholds import condition_of, thresholds
from uhr.manifests.schema import FAILED
from uhr.manifests.stats import Stats, compute

if TYPE_CHECKING:
    import jinja2

HERE = Path(__file__).parent
EXAMPLES = 8
"""Number of files that are named per kind of fault."""


@dataclass(frozen=True)
class FaultCount:
    """A kind of fault, the number of samples that failed with it, and some of them with their errors."""

    kind: str
    count: int
    examples: list[tuple[str, str]]


def write_report(manifest: Manifest, out: Path) -> Path:
    """Write the report on `manifest` to the file `out`, atomically. The same manifest gives the same bytes.

    The page is self-contained, with styles, images and charts, and readable without its script. Raises
    UserError if `out` is a folder or cannot be written.
    """
    out = Path(out)
    if out.is_dir():
        raise UserError(f"--out {out} is a folder", "name an HTML file")
    text = render(manifest)
    with saving(out, "free space there, or name another file with --out"), atomic(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return out


def render(manifest: Manifest) -> str:
    """Return the page as HTML. Every value is escaped by the template engine; nothing is marked safe."""
    template = _template()
    steps = 3
    with progress("report", steps, "steps") as advance:
        stats = compute(manifest)
        advance()
        charts = _histograms(manifest, stats)
        advance()
        images = groups(manifest)
        advance()
    return template.render(
        info=manifest.info,
        query=_query(manifest.path),
        title=_title(manifest),
        counts=manifest.info.counts,
        stats=stats,
        highlights=_highlights(stats),
        is_slice=manifest.info.operation.get("kind") == "slice",
        rules=stats.rules,
        faults=_faults(manifest),
        histograms=charts,
        chart=(WIDTH, HEIGHT),
        aspects=stats.aspects,
        groups=images,
        chain=[link | {"what": summary(link.get("operation", {}))} for link in lineage(manifest.path)],
        operation=yaml.safe_dump(manifest.info.operation, sort_keys=False, allow_unicode=True, width=100),
    )


@functools.cache
def _template() -> jinja2.Template:
    """Compile the page's template, once: it takes 0.1 s. Raises UserError if jinja2 is not installed."""
    try:
        import jinja2
    except ImportError as error:
        raise UserError(f"the report needs jinja2 ({one_line(error)})", install("curate")) from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(number=number, share=share, first_words=first_words)
    # escape control characters and those that change the text direction; `operation` has several lines
    environment.finalize = lambda value: shown(value, keep="\n") if type(value) is str else value
    return environment.get_template("report.html")


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


def _faults(manifest: Manifest) -> list[FaultCount]:
    """Return the kinds of fault, most frequent first."""
    query = f"""
        SELECT reason, count(*) AS n, min_by((uri, error), uri, {EXAMPLES})
        FROM samples WHERE status = '{FAILED}' GROUP BY reason ORDER BY n DESC, reason"""
    with manifest.connect() as connection:
        found = connection.sql(query).fetchall()
    return [
        FaultCount(kind, count, [tuple(example) for example in examples]) for kind, count, examples in found
    ]


def _histograms(manifest: Manifest, stats: Stats) -> list[Histogram]:
    """Return one histogram per numeric column that varies, first those that rules compare."""
    cuts = []
    for rule in manifest.info.rules:
        condition = condition_of(rule)
        if condition is not None and rule.state == "evaluated":
            cuts += thresholds(condition)
    ruled = [cut.column for cut in cuts]
    columns = {column.name: column for column in manifest.columns}
    numeric = sorted(stats.numeric, key=lambda column: column.name not in ruled)
    with manifest.connect() as connection:
        charts = [histogram(connection, columns[one.name], one, cuts) for one in numeric if one.coverage]
    return [chart for chart in charts if chart is not None]
