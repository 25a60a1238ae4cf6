"""Take samples out of an export. Every format names files, members and index lines by sample id."""

from __future__ import annotations

import contextlib
import json
import re
import tarfile
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from uhr.base import parquet
from uhr.base.files import atomic, json_bytes, write_json
from uhr.base.paths import in_store
from uhr.base.store import ObjectStore

RECORD = "export.json"


def matching(place: Path | str, ids: frozenset[str]) -> list[str]:
    """Return the names of the files of an export that have something of these samples, sorted."""
    files = _files_at(place)
    return [name for name in files.names() if _is_own(name, ids) or _found(files, name, ids)]


def _found(files: _Files, name: str, ids: frozenset[str]) -> bool:
    if PurePath(name).suffix not in _REDACT:
        return False
    with files.opened(name) as file:
        return _has(file, ids)


def redact(place: Path | str, ids: frozenset[str], time: str) -> int:
    """Take the samples out of all files of an export; returns the number of files that changed.

    A file is removed, or replaced whole. Running it again changes nothing.
    """
    files = _files_at(place)
    record = files.record()
    names = [name for name in matching(place, ids) if name != RECORD]
    # the record says that something was taken out before anything is
    if names and time not in record.get("redactions", []):
        record["redactions"] = [*record.get("redactions", []), time]
        files.write(RECORD, json_bytes(record))
    for name in names:
        if _is_own(name, ids):
            files.remove(name)
            continue
        with files.opened(name) as file:
            _REDACT[file.suffix](file, ids)
            files.put(name, file)
    record["failed"] = [each for each in record.get("failed", []) if each.get("sample_id") not in ids]
    if time in record.get("redactions", []):
        record["images"] = _images(files, record)
        files.write(RECORD, json_bytes(record))
        _card(files, record)
    return len(names)


class _Files:
    """The files of an export in a folder, by their names relative to it, with `/` in between."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        found = (file for file in self._folder.rglob("*") if file.is_file() and not file.is_symlink())
        return sorted(file.relative_to(self._folder).as_posix() for file in found)

    def record(self) -> dict[str, Any]:
        return json.loads(self.read(RECORD) or b"")

    def read(self, name: str) -> bytes | None:
        file = self._folder / name
        return file.read_bytes() if file.is_file() else None

    def write(self, name: str, data: bytes) -> None:
        with atomic(self._folder / name) as temporary:
            temporary.write_bytes(data)

    def remove(self, name: str) -> None:
        (self._folder / name).unlink()

    @contextlib.contextmanager
    def opened(self, name: str) -> Generator[Path]:
        """Yield the file, or a copy of it, to read and to replace."""
        yield self._folder / name

    def put(self, name: str, file: Path) -> None:
        """Make the file that was `opened` and replaced that of the export."""
        return


class _Objects(_Files):
    """The same in an object store: one file at a time is copied to this machine."""

    def __init__(self, address: str) -> None:
        self._store = ObjectStore(address)

    def names(self) -> list[str]:
        return sorted(self._store.names())

    def read(self, name: str) -> bytes | None:
        return self._store.read(name)

    def write(self, name: str, data: bytes) -> None:
        self._store.write(name, data)

    def remove(self, name: str) -> None:
        self._store.delete(name)

    @contextlib.contextmanager
    def opened(self, name: str) -> Generator[Path]:
        with tempfile.TemporaryDirectory(prefix="uhr-forget-") as folder:
            file = Path(folder) / PurePath(name).name
            self._store.fetch(name, file)
            yield file

    def put(self, name: str, file: Path) -> None:
        self._store.upload(file, name)


def _files_at(place: Path | str) -> _Files:
    return _Objects(place) if in_store(place) else _Files(Path(place))


def _is_own(name: str, ids: frozenset[str]) -> bool:
    """Whether a file is named by one of these samples: its image, or its caption."""
    return PurePath(name).name.partition(".")[0] in ids


def _has(file: Path, ids: frozenset[str]) -> bool:
    if file.suffix == ".tar":
        with tarfile.open(file) as tar:
            return any(member.name.partition(".")[0] in ids for member in tar)
    if file.suffix == ".parquet":
        return any(_mask(parquet.read(file, _id_columns(file)), ids).to_pylist())
    return any(_mentions(value, ids) for value in _values(file))


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
    ".tar": _redact_tar,
    ".parquet": _redact_parquet,
    ".jsonl": _redact_lines,
    ".json": _redact_json,
}


def _images(files: _Files, record: dict[str, Any]) -> dict[str, int]:
    """Count the images of each split that are left, in the files of the shards."""
    counts = dict.fromkeys(record["images"], 0)
    names = set(files.names())
    inside = Counter(each.rpartition("/")[0] for each in names if not each.endswith((".txt", ".jsonl")))
    for name in record["files"]:
        split = max((each for each in counts if _is_of(name, each)), key=len)
        counts[split] += inside[name]
        if name not in names:
            continue
        with files.opened(name) as file:
            if file.suffix == ".tar":
                with tarfile.open(file) as tar:
                    counts[split] += sum(member.name.endswith(".json") for member in tar)
            elif file.suffix == ".parquet":
                counts[split] += parquet.row_count(file)
    return counts


def _is_of(name: str, split: str) -> bool:
    """Whether a file or folder of an export is a shard of the split: `data/train-00001-of-00002.parquet`."""
    return re.match(rf"{re.escape(split)}(-\d{{5}}|/|\.|$)", name.removeprefix("data/")) is not None


def _card(files: _Files, record: dict[str, Any]) -> None:
    """Say in a dataset card that its counts are those before."""
    data = files.read("README.md")
    if data is None:
        return
    note = "Samples were taken out of this export; the counts above are those before."
    text = data.decode("utf-8")
    if note not in text:
        left = ", ".join(f"{split} {count}" for split, count in record["images"].items())
        files.write("README.md", f"{text.rstrip()}\n\n{note} Images left: {left}.\n".encode())
