"""Reads prompts from text, JSONL, CSV and Parquet files, and from captions of a manifest."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, field_validator, model_validator

from uhr.base.config import Config, Text, build
from uhr.base.errors import UserError, combined, one_line, unknown

FORMS = "a .txt with a prompt per line, a .jsonl, .csv or .parquet, or the folder of a manifest"


class Line(Config):
    """One image of a file of prompts; the command line gives values that are None.

    width, height: in px, both or neither. image: a path relative to the file's folder.
    """

    prompt: Text
    name: str | None = None
    negative: Text | None = None
    seed: int | None = Field(None, ge=0, lt=2**63)
    width: int | None = Field(None, gt=0)
    height: int | None = Field(None, gt=0)
    image: str | None = None

    @field_validator("prompt")
    @classmethod
    def _not_empty(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("is empty")
        return prompt.strip()

    @model_validator(mode="after")
    def _whole_size(self) -> Line:
        if (self.width is None) != (self.height is None):
            raise ValueError("width and height go together")
        return self


class LocatedLine(NamedTuple):
    """A line with its location, such as `prompts.jsonl line 3`."""

    line: Line
    where: str


def read_prompts(path: Path) -> list[LocatedLine]:
    """Read all prompts of a file or a manifest, in order.

    Raises UserError with file, line and value of the first few mistakes.
    """
    if path.is_dir():
        found = _of_manifest(path)
    elif not path.is_file():
        raise UserError(f"--prompts {path} does not exist", f"name {FORMS}")
    else:
        readers = {".txt": _of_text, ".jsonl": _of_jsonl, ".csv": _of_csv, ".parquet": _of_parquet}
        if path.suffix.lower() not in readers:
            raise UserError(f"--prompts {path} has an unknown form", f"name {FORMS}")
        found = readers[path.suffix.lower()](path)
    lines, mistakes = [], []
    for tree, where in found:
        try:
            lines.append(_located(tree, where))
        except UserError as error:
            mistakes.append(error)
    if mistakes:
        raise combined(mistakes)
    if not lines:
        raise UserError(f"{path} contains no prompt", f"name {FORMS}")
    return lines


def without_caption(path: Path) -> int:
    """Number of kept rows of a manifest that have no caption, and so give no prompt; 0 for a file."""
    if not path.is_dir():
        return 0
    from uhr.manifests.manifest import Manifest

    captions = Manifest.open(path).table(["caption"], where="status = 'kept'")["caption"].to_pylist()
    return sum(not (caption or "").strip() for caption in captions)


def _located(tree: Mapping[str, Any] | UserError, where: str) -> LocatedLine:
    if isinstance(tree, UserError):
        raise tree
    try:
        return LocatedLine(build(Line, tree, where), where)
    except UserError as error:
        raise UserError(error.what, error.fix or "correct that line") from None


RawLine = tuple[Mapping[str, Any] | UserError, str]
"""The values of one line or the error in it, and its location."""


def _of_text(path: Path) -> Iterator[RawLine]:
    # not splitlines(): that also splits at characters which belong to a prompt
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            yield {"prompt": line}, f"{path} line {number}"


def _of_jsonl(path: Path) -> Iterator[RawLine]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            tree = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield UserError(f"{where} is not JSON ({one_line(error)})", "write one object per line"), where
            continue
        if not isinstance(tree, dict):
            tree = UserError(f"{where} is {line.strip()[:40]}, not an object", 'write {"prompt": ...}')
        yield tree, where


def _of_csv(path: Path) -> Iterator[RawLine]:
    rows = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        head = [name.strip() for name in next(rows, [])]
        _check_columns(head, f"{path} line 1")
        for row in rows:
            where = f"{path} line {rows.line_num}"
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(head):
                what = f"{where} has {len(row)} cells, and the header {len(head)}"
                yield UserError(what, "quote commas"), where
                continue
            yield {name: cell for name, cell in zip(head, row, strict=True) if cell}, where
    except csv.Error as error:
        raise UserError(
            f"{path} line {rows.line_num} is not CSV ({one_line(error)})", "fix that line"
        ) from None


def _of_parquet(path: Path) -> Iterator[RawLine]:
    import pyarrow as pa

    from uhr.base import parquet

    try:
        table = parquet.read(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)})", "name a Parquet file") from None
    _check_columns(table.schema.names, str(path))
    number = 0
    for batch in table.to_batches(max_chunksize=1000):
        for row in batch.to_pylist():
            number += 1
            values = {name: value for name, value in row.items() if not _is_null(value)}
            yield values, f"{path} row {number}"


def _of_manifest(path: Path) -> Iterator[RawLine]:
    """The captions of a manifest's kept rows, under their sample ids."""
    from uhr.manifests.info import is_manifest
    from uhr.manifests.manifest import Manifest

    if not is_manifest(path):
        raise UserError(f"--prompts {path} is a folder, but not a manifest", f"name {FORMS}")
    rows = Manifest.open(path).table(["sample_id", "caption"], where="status = 'kept'").to_pylist()
    for row in rows:
        if (row["caption"] or "").strip():
            sample = row["sample_id"]
            yield {"prompt": row["caption"], "name": sample}, f"{path} sample {sample}"


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"--prompts {path} cannot be read ({error.strerror})", f"name {FORMS}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path} line {line} is not UTF-8", "save the file as UTF-8") from None


def _check_columns(names: list[str], where: str) -> None:
    known = list(Line.model_fields)
    for name in names:
        if name not in known:
            raise unknown("column", name, known, where)
        if names.count(name) > 1:
            raise UserError(f"{where}: column '{name}' occurs twice", "remove one of them")
    if "prompt" not in names:
        raise UserError(f"{where} has no column 'prompt'", f"columns are {', '.join(known)}")


def _is_null(value: Any) -> bool:
    """Whether a value is null, or NaN, which pandas writes for null."""
    return value is None or (isinstance(value, float) and math.isnan(value))
