"""Generate `docs/schema.md`: run `python -m uhr.curate.schema_doc` in the repository's root."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from uhr.base.files import atomic
from uhr.curate.stages import NAMES, example
from uhr.manifests.parts import GROUP_ROWS, PREVIEW_SCHEMA
from uhr.manifests.schema import BASE, COLUMNS, GROUPS, SCHEMA_VERSION, VERDICT, Column

FILE = Path("docs") / "schema.md"

TOP = """# The schema of a manifest

Written by `python -m uhr.curate.schema_doc` from `manifests/schema.py` and the stages of curation; schema
version {version}.

A manifest is a folder. It is committed once, by writing `manifest.json` last, and never changes.

```
OUT/
  manifest.json            id, schema version, parents, what was done, stages, rules, counts, parts
  samples/part-*.parquet   one row per file of the source, sorted by uri; row groups of {rows:,}
  previews/part-*.parquet  small JPEGs for people: {previews}
  pixels/part-*.parquet    the original bytes by content_hash, where the pipeline stores them
  report.html              what `uhr manifest report` writes; not part of the manifest
```

Any Parquet reader reads the parts. Each column's meaning, unit, range, source and stage are in its Arrow
field metadata too. Only `sample_id`, `uri` and `status` are never null: a row that was rejected early has no
values of later stages. A stage of your own declares its columns in the same way; they come after these.
"""


STAGES = """## Columns of the stages

Each stage with the defaults of its parameters: other values may give other columns (`pyiqa` names its column
after the metric). A name in capitals is the value of a parameter that has no default: `rank` with
`of: entropy` adds `entropy_rank`. `uhr curate stages` has the parameters.
"""


def render() -> str:
    """Return the whole page in Markdown."""
    previews = ", ".join(f"`{field.name}`" for field in PREVIEW_SCHEMA)
    lines = [TOP.format(version=SCHEMA_VERSION, rows=GROUP_ROWS, previews=previews)]
    always = {column.name for column in BASE}
    for title, columns in GROUPS.items():
        lines.append(f"## {title}\n")
        if all(column.name in always for column in columns):
            lines.append("In every manifest.\n")
        lines.append(markdown_table(columns, "rules" if columns is VERDICT else "source"))
    lines.append(STAGES)
    for stage in NAMES:
        lines.append(f"## Stage `{stage}`\n")
        lines.append(markdown_table(column for column in example(stage).adds if column.name not in COLUMNS))
    return "\n".join(lines)


def markdown_table(columns: Iterable[Column], writer: str = "source") -> str:
    """Return one line per column; `writer` is shown for columns that no stage adds."""
    lines = ["| column | type | unit | range | meaning | written by |", "|--|--|--|--|--|--|"]
    for column in columns:
        meaning = f"{column.meaning} ({column.source})" if column.source else column.meaning
        cells = (
            f"`{column.name}`",
            _type(column),
            column.unit,
            column.range,
            meaning,
            column.stage or writer,
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _type(column: Column) -> str:
    if pa.types.is_fixed_size_list(column.type):
        return f"{column.type.value_type}[{column.type.list_size}]"
    return str(column.type)


def main() -> None:
    with atomic(FILE) as temporary:
        temporary.write_text(render(), encoding="utf-8")
    print(FILE)


if __name__ == "__main__":
    main()
