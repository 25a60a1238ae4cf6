"""The columns of a manifest: name, type, unit, range, meaning, and the stage that writes it.

Those that a stage of curation adds are in the module of the stage, and are not known here.

A column's description is stored in its Arrow field metadata, which any Parquet reader can read from any part,
and which is all that is known of the column when the manifest is read.
It is part of the bytes that the id is a hash of, so a changed text gives new manifests other ids.
`docs/schema.md` is generated from this module and the stages: `uhr.curate.schema_doc`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

SCHEMA_VERSION = 2
"""Increase it when an older version could misread a manifest, and add a function to `info.MIGRATIONS`. Added
columns do not require it. Version 2 has slices by reference, redactions, and the coverage of columns."""

KEPT, REJECTED, FAILED = "kept", "rejected", "failed"
STATUSES = (KEPT, REJECTED, FAILED)


@dataclass(frozen=True)
class Column:
    """One column of a manifest.

    `unit` and `range` are texts ("px", "[0, 1]"); `source` names the paper or code that defines the number;
    `stage` is set for columns that a curation stage adds.
    """

    name: str
    type: pa.DataType
    meaning: str
    unit: str = ""
    range: str = ""
    source: str = ""
    stage: str = ""

    def field(self) -> pa.Field:
        """Return the nullable Arrow field, with everything but name and type in its metadata."""
        texts = {
            "meaning": self.meaning,
            "unit": self.unit,
            "range": self.range,
            "source": self.source,
            "stage": self.stage,
        }
        return pa.field(self.name, self.type, metadata={k: v for k, v in texts.items() if v})

    @classmethod
    def from_field(cls, field: pa.Field) -> Column:
        """Read a column from a field of a Parquet part. A column of another tool has an empty meaning."""
        texts = {k.decode(): v.decode() for k, v in (field.metadata or {}).items()}
        known = {k: texts.get(k, "") for k in ("meaning", "unit", "range", "source", "stage")}
        return cls(field.name, field.type, **known)


IDENTITY = (
    Column(
        "sample_id",
        pa.string(),
        "unique and the same on any machine: SHA-256 of `uri` (or of parent and box), 32 hex digits",
    ),
    Column(
        "uri",
        pa.string(),
        "address below the source root that `manifest.json` names; a link is never resolved; `%` and bytes "
        "that are no UTF-8 are percent-encoded",
    ),
    Column("parent_id", pa.string(), "the sample that a patch was cut from; null for a whole picture"),
    Column(
        "box",
        pa.list_(pa.field("element", pa.int32()), 4),
        "x, y, width, height of a patch in the oriented parent",
        "px",
    ),
    Column(
        "source_version",
        pa.string(),
        "size and modification time (or ETag) of the source object: decides whether bytes must be read again",
    ),
    Column(
        "content_hash",
        pa.string(),
        "SHA-256 of the file's bytes; null where only a header was read",
        stage="decode",
    ),
)

VERDICT = (
    Column("status", pa.string(), "what became of the sample", range="kept | rejected | failed"),
    Column(
        "reason", pa.string(), "the rule that turned the sample down, or the kind of fault; null when kept"
    ),
    Column("error", pa.string(), "the fault in words, for people; null unless failed"),
)

CHANNELS = Column(
    "channels",
    pa.list_(pa.field("element", pa.string())),
    "the channels whose rules keep the sample; empty where none does",
)

REJECTED_BY = Column(
    "rejected_by",
    pa.list_(pa.field("element", pa.string())),
    "every rule that rejects the sample, with `all_rules: true`",
)

CHILD_COUNT = Column(
    "child_count",
    pa.int32(),
    "number of patches that were cut from the image; null for a patch, and where none were looked for",
    "1",
    ">= 0",
)

RIGHTS = (
    Column("caption", pa.string(), "the caption that came with the picture (sidecar, alt text)"),
    Column("source_url", pa.string(), "where the picture was taken from"),
    Column("author", pa.string(), "whom to credit"),
    Column("license", pa.string(), "the licence that the source states"),
    Column(
        "source_meta", pa.string(), "everything else that the source says of the picture, as one JSON object"
    ),
)

SOURCES = (
    Column("source_name", pa.string(), "the source of the row, by its name in the pipeline"),
    Column("contract", pa.string(), "the agreement under which the source gave the image"),
    Column(
        "stated_width", pa.int32(), "width that the source states; nothing was read to check it", "px", "> 0"
    ),
    Column(
        "stated_height",
        pa.int32(),
        "height that the source states; nothing was read to check it",
        "px",
        "> 0",
    ),
)
"""Columns that only some sources have. A rule over them can reject before an image is read or fetched."""

CHOICES = (
    Column("split", pa.string(), "the part of a training split that the row was drawn into", stage="slice"),
)

REVIEW = (
    Column(
        "review",
        pa.string(),
        "what a person decided of the image by hand; it changes no status: slice by it",
        range="accepted | rejected",
    ),
    Column(
        "review_tags", pa.list_(pa.field("element", pa.string())), "tags that a person gave the image, sorted"
    ),
    Column("review_by", pa.string(), "who gave the verdict, or the tags where there is none"),
    Column("review_time", pa.string(), "when that was, ISO 8601 in UTC"),
    Column("review_reason", pa.string(), "why it was decided so, in the reviewer's words"),
)
"""Columns that `uhr manifest browse` adds."""

ENCODING = (
    Column(
        "bucket",
        pa.string(),
        "size of the crop that was encoded, as WIDTHxHEIGHT; null where the row is not encoded",
        "px",
        "4096x4096, 5440x3072, ...",
        stage="encode",
    ),
    Column(
        "bucket_row",
        pa.int64(),
        "number of the row within its bucket, in the order of the stored latents",
        "1",
        ">= 0",
        stage="encode",
    ),
    Column(
        "resized_width",
        pa.int32(),
        "width to which the image (or the box of a patch) was resized before it was cropped to its bucket",
        "px",
        "> 0",
        stage="encode",
    ),
    Column(
        "resized_height",
        pa.int32(),
        "height to which the image (or the box of a patch) was resized before it was cropped to its bucket",
        "px",
        "> 0",
        stage="encode",
    ),
    Column(
        "crop_left",
        pa.int32(),
        "first column of the crop in the resized image",
        "px",
        ">= 0",
        stage="encode",
    ),
    Column(
        "crop_top", pa.int32(), "first row of the crop in the resized image", "px", ">= 0", stage="encode"
    ),
)

GROUPS = {
    "Identity": IDENTITY,
    "Verdict": VERDICT,
    "Caption and rights": RIGHTS,
    "Source": SOURCES,
    "Channels and patches": (CHANNELS, REJECTED_BY, CHILD_COUNT),
    "Choices": CHOICES,
    "Review": REVIEW,
    "Encoding": ENCODING,
}

COLUMNS: dict[str, Column] = {column.name: column for group in GROUPS.values() for column in group}
"""The columns that no stage of curation adds. Those of the stages are described by each manifest itself:
`Manifest.columns`."""

SOURCE_NAME, CONTRACT, STATED = SOURCES[0], SOURCES[1], SOURCES[2:]

BASE = (*IDENTITY, *VERDICT, *RIGHTS)
"""The columns that every manifest has, independent of its stages."""


def schema_of(columns: Iterable[Column]) -> pa.Schema:
    """Return the Arrow schema of a manifest: the base columns, then these."""
    added = [column for column in columns if column.name not in {base.name for base in BASE}]
    return pa.schema([column.field() for column in (*BASE, *added)])


def sample_id(uri: str, source_name: str | None = None) -> str:
    """Return the id of a whole image: 32 hex digits, independent of where the source is mounted.

    `source_name` is set where there are several sources, in which the same `uri` may occur.
    """
    text = uri if source_name is None else f"{source_name}:{uri}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def patch_id(parent_id: str, box: tuple[int, int, int, int]) -> str:
    """Return the id of a patch, from its parent's id and its box (x, y, width, height in oriented px)."""
    return hashlib.sha256(f"{parent_id}#{','.join(map(str, box))}".encode()).hexdigest()[:32]
