"""Take samples out of an export. Every format names files, members and index lines by sample id."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from uhr.base import parquet
from uhr.base.files import atomic, write_json

RECORD = "export.json"


def matching(folder: Path, ids: frozenset[str]) -> list[Path]:
    """Return the files of an export that have something of these samples, sorted."""
    found = []
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not file.is_symlink() and _has(file, ids):
            found.append(file)
    return found


def redact(folder: Path, ids: frozenset[str], time: str) -> int:
    """Take the samples out of all files of an export; returns the number of files that changed.

    A file is removed, or replaced whole. Running it again changes nothing.
    """
    files = [file for file in matching(folder, ids) if file.name != RECORD]
    # the record says that something was taken out before anything is
    record = json.loads((folder / RECORD).read_bytes())
    if files and time not in record.get("redactions", []):
        record["redactions"] = [*record.get("redactions", []), time]
        write_json(folder / RECORD, record)
    for file in files:
        _REDACT[_kind(file, ids)](file, ids)
    record["failed"] = [each for each in record.get("failed", []) if each.get("sample_id") not in ids]
    if time in record.get("redactions", []):
        record["images"] = _images(folder, record)
        write_json(folder / RECORD, record)
        _card(folder, record)
    return len(files)


def _kind(file: Path, ids: frozenset[str]) -> str:
    if file.name.partition(".")[0] in ids:
        return "own"
    return file.suffix


def _has(file: Path, ids: frozenset[str]) -> bool:
    kind = _kind(file, ids)
    if kind == "own":
        return True
    if kind == ".tar":
        with tarfile.open(file) as tar:
            return any(member.name.partition(".")[0] in ids for member in tar)
    if kind == ".parquet":
        return any(_mask(parquet.read(file, _id_columns(file)), ids).to_pylist())
    if kind in (".json", ".jsonl"):
        return any(_mentions(value, ids) for value in _values(file))
    return False


def _values(file: Path) -> Iterator[Any]:
    if file.suffix == ".jsonl":
        with file.open(encoding="utf-8") as lines:
            yield from (json.loads(line) for line in lines if line.strip())
        return
    tree = json.loads(file.read_bytes())
    yield from tree.items() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()


def _mentions(value: Any, ids: frozenset[str]) -> bool:
    """Whether a line, or a key with its value, is of one of these samples."""
    if isinstance(value, dict):
        names = [value.get("sample_id"), value.get("file_name"), value.get("filename")]
        return any(_stem(name) in ids for name in names if isinstance(name, str))
    if isinstance(value, tuple):
        return _stem(value[0]) in ids or (
            isinstance(value[1], list) and any(_mentions(each, ids) for each in value[1])
        )
    return False


def _stem(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[0]


def _id_columns(file: Path) -> list[str]:
    return [name for name in ("sample_id", "filename") if name in parquet.schema_of(file).names]


def _mask(table: pa.Table, ids: frozenset[str]) -> pa.Array:
    if not table.num_columns:
        return pa.array([], pa.bool_())
    rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
    return pa.array(
        [any(name is not None and _stem(name) in ids for name in row) for row in rows], pa.bool_()
    )


def _redact_tar(file: Path, ids: frozenset[str]) -> None:
    with (
        atomic(file) as temporary,
        tarfile.open(file) as old,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as new,
    ):
        for member in old:
            if member.name.partition(".")[0] not in ids:
                new.addfile(member, old.extractfile(member))


def _redact_parquet(file: Path, ids: frozenset[str]) -> None:
    columns = _id_columns(file)
    with (
        atomic(file) as temporary,
        parquet.opened(file) as old,
        parquet.writer(temporary, old.schema_arrow, compression="zstd") as new,
    ):
        for number in range(old.num_row_groups):
            group = old.read_row_group(number)
            new.write_table(group.filter(pc.call_function("invert", [_mask(group.select(columns), ids)])))


def _redact_lines(file: Path, ids: frozenset[str]) -> None:
    with atomic(file) as temporary, temporary.open("w", encoding="utf-8") as new:
        for value in _values(file):
            if not _mentions(value, ids):
                new.write(json.dumps(value, ensure_ascii=False) + "\n")


def _redact_json(file: Path, ids: frozenset[str]) -> None:
    tree = json.loads(file.read_bytes())
    if isinstance(tree, dict):
        write_json(file, {key: value for key, value in tree.items() if not _mentions((key, value), ids)})
    else:
        write_json(file, [value for value in tree if not _mentions(value, ids)])


_REDACT = {
    "own": lambda file, ids: file.unlink(),
    ".tar": _redact_tar,
    ".parquet": _redact_parquet,
    ".jsonl": _redact_lines,
    ".json": _redact_json,
}


def _images(folder: Path, record: dict[str, Any]) -> dict[str, int]:
    """Count the images of each split that are left, in the files of the shards."""
    counts = dict.fromkeys(record["images"], 0)
    for name in record["files"]:
        file = folder / name
        split = max((each for each in counts if _is_of(name, each)), key=len)
        if file.suffix == ".tar":
            with tarfile.open(file) as tar:
                counts[split] += sum(member.name.endswith(".json") for member in tar)
        elif file.suffix == ".parquet":
            counts[split] += parquet.row_count(file)
        elif file.is_dir():
            counts[split] += sum(each.suffix not in (".txt", ".jsonl") for each in file.iterdir())
    return counts


def _is_of(name: str, split: str) -> bool:
    """Whether a file or folder of an export is a shard of the split: `data/train-00001-of-00002.parquet`."""
    return re.match(rf"{re.escape(split)}(-\d{{5}}|/|\.|$)", name.removeprefix("data/")) is not None


def _card(folder: Path, record: dict[str, Any]) -> None:
    """Say in a dataset card that its counts are those before."""
    card = folder / "README.md"
    if not card.is_file():
        return
    note = "Samples were taken out of this export; the counts above are those before."
    text = card.read_text(encoding="utf-8")
    if note not in text:
        left = ", ".join(f"{split} {count}" for split, count in record["images"].items())
        with atomic(card) as temporary:
            temporary.write_text(f"{text.rstrip()}\n\n{note} Images left: {left}.\n", encoding="utf-8")
