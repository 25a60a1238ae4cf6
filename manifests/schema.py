"""Every column of a manifest: name, type, unit, range, meaning, and the stage that writes it.

A column's description is stored in its Arrow field metadata, which any Parquet reader can read from any part.
It is part of the bytes that the id is a hash of, so a changed text gives new manifests other ids.
`docs/schema.md` is generated from this file.
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

FETCH = (
    Column("fetch_time", pa.string(), "when the image was fetched, ISO 8601 in UTC", stage="fetch"),
    Column("final_url", pa.string(), "the URL that answered, after redirects", stage="fetch"),
    Column(
        "http_status",
        pa.int16(),
        "status of the last answer; null where there was none",
        range="100..599",
        stage="fetch",
    ),
    Column("etag", pa.string(), "ETag of the answer", stage="fetch"),
    Column(
        "opt_out",
        pa.string(),
        "the reservation of the site because of which the image was not taken: robots.txt, X-Robots-Tag or "
        "tdm-reservation; null where there is none",
        stage="fetch",
    ),
    Column(
        "opt_out_headers",
        pa.string(),
        "the headers X-Robots-Tag, tdm-reservation and tdm-policy of the answer, obeyed or not",
        stage="fetch",
    ),
)

HEADER = (
    Column(
        "format",
        pa.string(),
        "file format by its content, never by its name",
        range="JPEG, PNG, WEBP, ...",
        stage="header",
    ),
    Column("width", pa.int32(), "width as displayed (EXIF orientation applied)", "px", "> 0", stage="header"),
    Column(
        "height", pa.int32(), "height as displayed (EXIF orientation applied)", "px", "> 0", stage="header"
    ),
    Column(
        "orientation",
        pa.int8(),
        "EXIF orientation tag of the file; 1 is upright",
        range="1..8",
        stage="header",
    ),
    Column(
        "mode",
        pa.string(),
        "colour model of the file",
        range="L, LA, P, RGB, RGBA, CMYK, ...",
        stage="header",
    ),
    Column(
        "bit_depth",
        pa.int8(),
        "bits per channel, as the file stores them; null where its channels differ or its header does not "
        "say",
        "bit",
        "1..64",
        stage="header",
    ),
    Column("file_size", pa.int64(), "size of the file", "byte", ">= 0", stage="header"),
)

DECODE = (
    Column(
        "notes",
        pa.string(),
        "what the decoder found odd in an image that it decoded whole, separated by `; ` (an ICC profile "
        "that was ignored, stray bytes between segments); null where nothing was odd, or nothing was decoded",
        stage="decode",
    ),
)

GEOMETRY = (
    Column("megapixels", pa.float64(), "width x height / 10^6", "Mpx", "> 0", stage="geometry"),
    Column("aspect_ratio", pa.float64(), "width / height", "1", "> 0", stage="geometry"),
    Column(
        "aspect_bucket",
        pa.string(),
        "the nearest common aspect ratio, as a label (a training bucket in pixels is chosen in `encode`)",
        range="1:1, 16:9, 2:3, ...",
        stage="geometry",
    ),
)

MEASUREMENTS = (
    Column(
        "flat_fraction",
        pa.float64(),
        "share of 240 x 240 px patches whose Sobel gradient magnitude has a variance below 800",
        "1",
        "[0, 1]",
        "UltraFlux 2511.18050, tools/filtering_pipeline.py",
        "flatness",
    ),
    Column(
        "entropy",
        pa.float64(),
        "Shannon entropy of the 8-bit gray histogram",
        "bit",
        "[0, 8]",
        "UltraFlux 2511.18050, tools/filtering_pipeline.py",
        "entropy",
    ),
    Column("luma_mean", pa.float64(), "mean of the 8-bit gray value", "1", "[0, 255]", stage="exposure"),
    Column(
        "dark_fraction", pa.float64(), "share of pixels with gray below 16", "1", "[0, 1]", stage="exposure"
    ),
    Column(
        "clipped_fraction",
        pa.float64(),
        "share of pixels with gray 0 or 255",
        "1",
        "[0, 1]",
        stage="exposure",
    ),
    Column(
        "laplacian_var",
        pa.float64(),
        "variance of the 3 x 3 Laplacian of gray: low where nothing is sharp",
        "1",
        ">= 0",
        stage="sharpness",
    ),
    Column(
        "blockiness",
        pa.float64(),
        "mean gray step across the 8 x 8 JPEG grid over the mean step inside it: 1 without blocks",
        "1",
        ">= 0",
        stage="sharpness",
    ),
    Column(
        "upscale_ratio",
        pa.float64(),
        "estimated linear enlargement that the picture went through: 1 where detail reaches the pixel grid",
        "1",
        ">= 1",
        stage="native_resolution",
    ),
)

DUPLICATES = (
    Column(
        "dup_group",
        pa.string(),
        "`content_hash` shared by all pictures with exactly these bytes; null where it is the only one",
        stage="exact_duplicates",
    ),
    Column(
        "dup_rank",
        pa.int32(),
        "place in its group by uri; 0 is the one to keep, and every picture without duplicates",
        "1",
        ">= 0",
        stage="exact_duplicates",
    ),
)

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
    "Fetch": FETCH,
    "Header": HEADER,
    "Decode": DECODE,
    "Geometry": GEOMETRY,
    "Measurements": MEASUREMENTS,
    "Duplicates": DUPLICATES,
    "Channels and patches": (CHANNELS, REJECTED_BY, CHILD_COUNT),
    "Choices": CHOICES,
    "Review": REVIEW,
    "Encoding": ENCODING,
}

COLUMNS: dict[str, Column] = {column.name: column for group in GROUPS.values() for column in group}

SOURCE_NAME, CONTRACT, STATED = SOURCES[0], SOURCES[1], SOURCES[2:]

_RANK = "_rank"
"""Ends the columns of the stage `rank`, after the column that they are ranks by."""


def curated_by(name: str) -> str | None:
    """What to curate with, so that a manifest has the column; None if no stage of ours adds it."""
    column = COLUMNS.get(name)
    if column is not None:
        own = column.stage not in ("", "slice", "encode")
        return f"curate with stage {column.stage}" if own else None
    return f"curate with stage rank (of: {name.removesuffix(_RANK)})" if name.endswith(_RANK) else None


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
