"""Finishes a set: writes a table of its items, and `set.json` last."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

import uhr
from uhr.base.config import Config, fingerprint, parse_versioned
from uhr.base.console import Advance
from uhr.base.errors import UserError
from uhr.base.store import Store
from uhr.manifests.info import Part
from uhr.models.generate.request import Item
from uhr.models.generate.setup import adapter_id
from uhr.train.generate.identity import PLACE, SCHEMA_VERSION, SetRequest, kind_of
from uhr.train.generate.work import failure_name, image_name, record_name

FILE, INDEX = "set.json", "set.parquet"
READ_AT_ONCE = 16

SCHEMA = pa.schema(
    [
        pa.field("name", pa.string()),
        pa.field("status", pa.string(), metadata={"meaning": "made or failed"}),
        # stored, and part of the id of a set: do not reword
        pa.field("prompt", pa.string(), metadata={"meaning": "as it was painted"}),
        pa.field(
            "original_prompt", pa.string(), metadata={"meaning": "as the user wrote it, where it differs"}
        ),
        pa.field("negative", pa.string()),
        pa.field("seed", pa.int64()),
        pa.field("width", pa.int32(), metadata={"unit": "px"}),
        pa.field("height", pa.int32(), metadata={"unit": "px"}),
        pa.field("image", pa.string(), metadata={"meaning": "the given image"}),
        pa.field(
            "prompt_tokens",
            pa.int32(),
            metadata={"meaning": "tokens of the prompt, for the encoder that reads the most of it"},
        ),
        pa.field("negative_tokens", pa.int32(), metadata={"meaning": "the same of the negative prompt"}),
        pa.field(
            "truncated",
            pa.bool_(),
            metadata={"meaning": "the end of the prompt or of the negative prompt was not read"},
        ),
        pa.field("file", pa.string(), metadata={"meaning": "from the set's folder"}),
        pa.field("bytes", pa.int64()),
        pa.field("sha256", pa.string(), metadata={"meaning": "of the file"}),
        pa.field("error", pa.string()),
    ]
)


class SetInfo(Config):
    """The content of `set.json`, which is written last.

    weights, adapters, versions: as in the images' records.
    counts: the number of items, and of those that were made, that failed, and that were truncated (the prompt
    is longer than the text encoder reads).
    left_out: by kind, how much of the source gave no item: files without an image suffix, kept rows of a
        manifest without a caption.
    """

    schema_version: int
    id: str
    uhr: str
    request: SetRequest
    counts: dict[str, int]
    weights: dict[str, Any]
    adapters: list[Any]
    versions: dict[str, str]
    index: Part
    left_out: dict[str, int] = Field(default_factory=dict)


def finish(
    store: Store,
    requested: SetRequest,
    items: Sequence[Item],
    left_out: Mapping[str, int],
    advance: Advance,
) -> tuple[SetInfo, str | None]:
    """Write the index and `set.json` from the records in the store.

    Returns the content of `set.json`, and the error of the first item that failed. Raises UserError for an
    image that another request made.
    """

    def read(item: Item) -> tuple[dict[str, Any], dict[str, Any] | None]:
        data = store.read(record_name(item.name))
        if data is None:
            return _failed(store, item), None
        return _made(store, item, data, requested)

    rows, first = [], None
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        for row, record in pool.map(read, items):
            rows.append(row)
            first = first or record
            if record is not None and first is not None:
                _check_common(first, record, store.place(record_name(row["name"])))
            advance()
    index = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), index, compression="zstd")
    data = index.getvalue()
    part = Part(path=INDEX, rows=len(rows), bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    made = sum(row["status"] == "made" for row in rows)
    info = SetInfo(
        schema_version=SCHEMA_VERSION,
        id=fingerprint([requested.id, part.sha256]),
        uhr=uhr.__version__,
        request=requested,
        counts={
            "items": len(rows),
            "made": made,
            "failed": len(rows) - made,
            "truncated": sum(bool(row.get("truncated")) for row in rows),
        },
        weights={} if first is None else first["weights"],
        adapters=[] if first is None else first["adapters"],
        versions={} if first is None else first["versions"],
        index=part,
        left_out=dict(left_out),
    )
    store.write(INDEX, data)
    store.write(FILE, (info.model_dump_json(indent=2) + "\n").encode())
    return info, next((f"{row['name']}: {row['error']}" for row in rows if row["status"] == "failed"), None)


def read_set(store: Store) -> SetInfo | None:
    """Read what `finish` wrote; None if the set is not finished. Raises UserError if it cannot be read."""
    data = store.read(FILE)
    if data is None:
        return None
    fix = "remove it; the same command writes it again"
    return parse_versioned(SetInfo, data, store.place(FILE), SCHEMA_VERSION, fix)


def _failed(store: Store, item: Item) -> dict[str, Any]:
    data = store.read(failure_name(item.name))
    error = "the image is missing" if data is None else json.loads(data)["error"]
    tree = item.model_dump(include={"name", "prompt", "negative", "seed"})
    return {**tree, "status": "failed", "image": _text(item.image), "error": error}


def _made(
    store: Store, item: Item, data: bytes, requested: SetRequest
) -> tuple[dict[str, Any], dict[str, Any]]:
    place, again = store.place(record_name(item.name)), "remove it; the same command generates it again"
    try:
        record = json.loads(data)
        row = {name: record[name] for name in ("prompt", "negative", "seed", "width", "height")}
        row |= {"name": item.name, "status": "made", "image": _text(item.image), **record["png"]}
        original = record["original"]
        row |= _tokens(record["details"].get("text_tokens"))
        differs = _recorded(record) != _expected(requested, item)
        _common(record)
    except (ValueError, LookupError, TypeError, AttributeError):
        raise UserError(f"{place} is not a record of an image of this set", again) from None
    if differs:
        raise UserError(f"{place} is of an image of another request", again)
    row |= {"original_prompt": original and original["prompt"], "file": image_name(item.name)}
    return row, record


def _tokens(counts: list[dict[str, Any]] | None) -> dict[str, Any]:
    """The lengths of a record's texts in tokens; empty for records of versions that did not count them."""
    if counts is None:
        return {}
    longest = {"prompt": None, "negative prompt": None}
    reads = dict.fromkeys(longest, 0)
    for each in counts:
        if each["text"] in reads and each["reads"] > reads[each["text"]]:
            reads[each["text"]] = each["reads"]
            (longest[each["text"]],) = each["tokens"]
    return {
        "prompt_tokens": longest["prompt"],
        "negative_tokens": longest["negative prompt"],
        "truncated": any(each["cut"] for each in counts),
    }


REWRITTEN = {"name", "prompt", "original"}
"""Fields of an item that may differ between an image's record and the set."""


def _expected(requested: SetRequest, item: Item) -> dict[str, Any]:
    """The facts that the record of an item's image must contain."""
    return {
        "request": requested.request.model_dump(mode="json", exclude=PLACE),
        "item": item.model_dump(mode="json", exclude=REWRITTEN),
        "prompt": item.prompt,
        "seed": item.seed,
        "dtype": requested.request.dtype,
        "computes": requested.computes,
        "threads": requested.threads,
        "adapters": requested.adapters,
        "rewritten": requested.refine is not None,
    }


def _recorded(record: dict[str, Any]) -> dict[str, Any]:
    """The same facts from a record. Raises LookupError, TypeError or others if it is not one of ours."""
    original = record["original"]
    return {
        "request": {name: value for name, value in record["request"].items() if name not in PLACE},
        "item": {name: value for name, value in record["item"].items() if name not in REWRITTEN},
        "prompt": original["prompt"] if original else record["prompt"],
        "seed": record["seed"],
        "dtype": record["dtype"],
        "computes": kind_of(record["device"]),
        "threads": record["machine"].get("threads"),
        "adapters": [adapter_id(each) for each in record["adapters"]],
        "rewritten": original is not None,
    }


def _common(record: dict[str, Any]) -> dict[str, Any]:
    """Facts that are known once the first image is generated, and are the same for all."""
    original = record["original"]
    return {
        "weights": record["weights"],
        "rewriting": original and (original["model"], original["instruction"]),
    }


def _check_common(first: dict[str, Any], record: dict[str, Any], place: str) -> None:
    known = _common(record)
    for name, value in _common(first).items():
        if known[name] != value:
            what = f"{place} is of an image with other {name} than the first"
            raise UserError(what, "remove one of them; the same command generates it again")


def _text(path: Any) -> str | None:
    return None if path is None else str(path)
