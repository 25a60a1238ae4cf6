"""What is to be forgotten: the samples, and the manifests, exports and checkpoints that have them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from uhr.base.config import Config
from uhr.base.console import command, warn
from uhr.base.errors import UserError, one_line
from uhr.base.paths import in_store, path_text, text_path
from uhr.base.store import ObjectStore, StoreError
from uhr.manifests import places
from uhr.manifests.forget.reports import SUFFIX, reports_of
from uhr.manifests.info import FILE, UNFINISHED, ManifestInfo
from uhr.manifests.lineage import CHECKPOINT, lineage, trained_on
from uhr.manifests.manifest import Manifest
from uhr.manifests.selection.tombstones import COLUMNS, tombstones_of
from uhr.manifests.sql import SqlCondition, literal, quoted

EXPORT = "export.json"
_PLAN = ".export/plan.json"
"""What an export has until it is finished, and `export.json` only then."""

_DEPTH = 4
"""Levels of folders in which the manifests, exports and runs beside a manifest are looked for; in a folder
that the user names, in all.
"""

_NAMED_BY = {"url": ("source_url", "final_url", "uri"), "author": ("author",), "hash": ("content_hash",)}
"""The columns that name samples, by the field of a request."""


class ForgetRequest(Config):
    """Which samples: exactly one of the fields is set.

    ids: sample ids. where: an SQL condition. url: an address (`source_url`, `final_url` or `uri`). author: as
    in the column. hash: of the file (`content_hash`).
    """

    ids: tuple[str, ...] | None = None
    where: str | None = None
    url: str | None = None
    author: str | None = None
    hash: str | None = None

    def condition(self, manifest: Manifest) -> str:
        """Return the SQL condition of the samples. Raises UserError unless one field is set and fits."""
        given = {name: value for name, value in self.model_dump().items() if value is not None}
        if len(given) != 1:
            fix = "give one of --ids, --where, --url, --author and --hash"
            raise UserError(f"{'several conditions' if given else 'no condition'} of what to forget", fix)
        if self.ids is not None:
            return f"sample_id IN ({', '.join(map(literal, self.ids))})"
        if self.where is not None:
            return self.where
        ((name, value),) = given.items()
        known = [each for each in _NAMED_BY[name] if each in manifest.schema.names]
        if not known:
            raise UserError(
                f"{manifest.name} has no column {_NAMED_BY[name][0]}", "name samples by --ids or --where"
            )
        value = value.lower() if name == "hash" else value
        return " OR ".join(f"{each} = {literal(value)}" for each in known)


@dataclass
class Targets:
    """The samples to forget, by id and by the hash of their files, and the groups of near-duplicates."""

    ids: set[str] = field(default_factory=set)
    hashes: set[str] = field(default_factory=set)
    groups: set[str] = field(default_factory=set)
    tombstones: set[str] = field(default_factory=set)

    @property
    def size(self) -> tuple[int, int, int]:
        return len(self.ids), len(self.hashes), len(self.groups)

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        for row in rows:
            self.ids |= {row["sample_id"], row.get("parent_id") or row["sample_id"]}
            self.hashes |= {each for each in (row.get("content_hash"),) if each}
            self.groups |= {each for each in (row.get("near_group"),) if each}
            self.tombstones |= set(tombstones_of(row))


def first_targets(manifest: Manifest, request: ForgetRequest) -> Targets:
    """Return the samples of the request. Raises UserError if there are none, if one of its ids is not in the
    manifest, or as `condition` does.
    """
    text = request.condition(manifest)
    condition = SqlCondition.parse(text, "--where" if request.where is not None else "forget")
    condition.check(manifest.schema)
    found = Targets()
    try:
        with manifest.connect() as connection:
            found.add(_rows(connection, manifest, condition.sql_for(connection)))
    except duckdb.Error as error:
        raise condition.error_from(error) from None
    if not found.ids:
        parents = _opened(
            link["path"] for link in reversed(lineage(places.place_of(manifest.path))) if link["found"]
        )
        if left := remaining(request, found, parents):
            raise UserError(
                f"{manifest.name} has no such sample, and {left[0].path} has {left[0].rows:,}",
                f"forget them there: {left[0].command}",
            )
        if request.ids is None:
            raise UserError(
                f"{manifest.name} has no such sample", "correct the name, or see 'uhr manifest show'"
            )
    if missing := sorted(set(request.ids or ()).difference(found.ids)):
        raise UserError(
            f"{manifest.name} has no sample {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}",
            f"name the id that 'uhr manifest history {manifest.name} URI' prints, or leave it out",
        )
    return found


def _opened(places_: Iterable[str]) -> list[Manifest]:
    return [Manifest.open(place if in_store(place) else text_path(place)) for place in places_]


def _rows(connection: duckdb.DuckDBPyConnection, manifest: Manifest, condition: str) -> list[dict[str, Any]]:
    names = [name for name in (*COLUMNS, "near_group") if name in manifest.schema.names]
    columns = ", ".join(map(quoted, names))
    return connection.sql(f"SELECT {columns} FROM samples WHERE {condition}").to_arrow_table().to_pylist()


def extend(targets: Targets, manifests: Sequence[Manifest]) -> None:
    """Add crops of the samples, the images of crops, copies of the same file, and near-duplicates, in all of
    the manifests, until none is left to add.
    """
    while True:
        before = targets.size
        for manifest in manifests:
            names = manifest.schema.names
            parts = [("ids", "sample_id"), ("ids", "parent_id"), ("hashes", "content_hash")]
            parts += [("groups", "near_group")]
            condition = " OR ".join(
                f"{column} IN (SELECT value FROM {which})" for which, column in parts if column in names
            )
            with manifest.connect() as connection:
                for which in ("ids", "hashes", "groups"):
                    values = sorted(getattr(targets, which))
                    connection.register(which, pa.table({"value": pa.array(values, pa.string())}))
                targets.add(_rows(connection, manifest, condition))
        if targets.size == before:
            return


@dataclass(frozen=True)
class Remaining:
    """Rows of a manifest that the request names too, and that are left: it was for another manifest.

    option: what they have in common, `author`, `url` or `hash`. command: what forgets them, in this manifest
    and in what was made from it.
    """

    path: str
    rows: int
    option: str
    command: str


def remaining(request: ForgetRequest, targets: Targets, manifests: Sequence[Manifest]) -> list[Remaining]:
    """Return the manifests that have other rows of the requested author or address than the targets.

    manifests: parents before children. One that has no other such rows than its parents is left out: it loses
    them with these.
    """
    given = {name: value for name, value in request.model_dump().items() if value is not None}
    ((option, value),) = given.items()
    if option not in _NAMED_BY:
        return []
    found: list[Remaining] = []
    covered = set(targets.ids)
    for manifest in manifests:
        if not set(_NAMED_BY[option]).intersection(manifest.schema.names):
            continue
        rows = manifest.table(["sample_id"], where=request.condition(manifest))["sample_id"].to_pylist()
        if not covered.issuperset(rows):
            path = places.place_of(manifest.path)
            text = command(
                "manifest", "forget", path if in_store(path) else text_path(path), f"--{option}", value
            )
            found.append(Remaining(path, len(set(rows) - targets.ids), option, text))
            covered |= set(rows)
    return found


@dataclass(frozen=True)
class Chain:
    """What may have samples of a manifest: manifests, parents before children; exports, by folder or address;
    reports elsewhere than beside their manifests, with the places of these; and checkpoints with the ids of
    the data that they name; None if the record of one cannot be read.
    """

    manifests: list[str]
    exports: list[str]
    reports: dict[str, str]
    checkpoints: dict[str, list[str] | None]


def chain_of(manifest: Manifest, below: Sequence[Path | str]) -> Chain:
    """Find the parents of a manifest, all that was made from any of them, and their exports, reports and
    checkpoints.

    What was made from them, and copies of them, are looked for beside each of them, and in the folders and
    prefixes `below`. Raises UserError if one of these is no folder or has no objects, if there is an
    unfinished export of one of the manifests, or if a record names one of them and is damaged or of a newer
    version; StoreError if a store fails.
    """
    named = [Path(each) for each in below if not in_store(each)]
    for each in named:
        if not each.is_dir():
            raise UserError(f"--in {each} is no folder", "name a folder that has manifests in it")
    chain = lineage(places.place_of(manifest.path))
    links = [link for link in chain if link["found"]]
    # those that are gone have no samples; those that cannot be read may have some
    absent = [link for link in chain if not link["found"] and link["role"] != UNFINISHED]
    known: dict[str, ManifestInfo] = {}
    for link in sorted(links, key=lambda link: -link["depth"]):
        known.setdefault(places.place_of(link["path"]), places.info_at(link["path"]))
    folders = {text_path(place).parent for place in known if not in_store(place)}
    files = {file for folder in folders for file in _files(folder, _DEPTH)}
    files = files.union(*(_files(each.resolve()) for each in named))
    records = [*_records(sorted(files)), *(one for each in below if in_store(each) for one in _objects(each))]
    candidates = [one.place for one in records if one.name == FILE] + [link["path"] for link in absent]
    infos, unread = _read(candidates)
    ids = _with_descendants(known, infos)
    for place, (data, why) in unread.items():
        _check_unrelated(f"{place}/{FILE}", data, why, ids.union(link["id"] for link in absent))
    exports = _exports_of(ids, records)
    checkpoints = {str(file.parent): trained_on(file) for file in sorted(files) if file.name == CHECKPOINT}
    pages = [file for file in sorted(files) if file.suffix == SUFFIX]
    reports = reports_of(known, pages, [each for each in below if in_store(each)])
    # those beside their manifests are written again with them
    reports = {report: place for report, place in reports.items() if report.rpartition("/")[0] != place}
    return Chain(list(known), exports, reports, checkpoints)


def _read(candidates: Sequence[str]) -> tuple[dict[str, ManifestInfo], dict[str, tuple[bytes, str]]]:
    """Read the manifests at these places. Return them, and the bytes of those that cannot be read with what
    is wrong. Raises StoreError if a store fails.
    """
    infos: dict[str, ManifestInfo] = {}
    unread: dict[str, tuple[bytes, str]] = {}
    for place in dict.fromkeys(candidates):
        try:
            infos[place] = places.info_at(place)
        except StoreError:
            raise
        except UserError as error:
            unread[place] = _record_at(place), error.what
    return infos, unread


def _with_descendants(known: dict[str, ManifestInfo], infos: Mapping[str, ManifestInfo]) -> set[str]:
    """Add to `known` those of `infos` that are copies of one of them, or were made from one, parents before
    children. Return the ids that they have and had.
    """
    ids: set[str] = set()
    more = dict(known)
    while more:
        known |= more
        ids |= {
            id_ for info in more.values() for id_ in (info.id, *(each.before for each in info.redactions))
        }
        left = {place: info for place, info in infos.items() if place not in known}
        # copies first: what is made of one may be read from it
        more = {place: info for place, info in left.items() if info.id in ids} or {
            place: info for place, info in left.items() if any(parent.id in ids for parent in info.parents)
        }
    return ids


def _exports_of(ids: set[str], records: Sequence[_Record]) -> list[str]:
    """Return the places of the exports of manifests with these ids. Raises UserError if one of them is
    unfinished, or if the record of one is damaged.
    """
    for one in records:
        if one.name == _PLAN and _value(one.data, ("parent",)) in ids:
            raise UserError(
                f"{one.place} contains an unfinished export of these manifests",
                "finish it with the command that began it, or remove it",
            )
    found: set[str] = set()
    for one in records:
        parent = _value(one.data, ("parent", "id"))
        if one.name == EXPORT and parent is None:
            _check_unrelated(f"{one.place}/{EXPORT}", one.data, f"{one.place}/{EXPORT} is damaged", ids)
        elif one.name == EXPORT and parent in ids:
            found.add(one.place)
    return sorted(found)


def _files(folder: Path, most: float = math.inf) -> Iterator[Path]:
    """Yield the records in a folder and in those below it, `most` levels deep."""
    for here, files in places.folders_below(folder, most):
        yield from (here / name for name in (FILE, EXPORT, CHECKPOINT) if name in files)
        yield from (here / name for name in files if name.endswith(SUFFIX))
        if (here / _PLAN).is_file():
            yield here / _PLAN


def _record_at(place: str) -> bytes:
    """Return the bytes of a `manifest.json` that is not one that this version can read."""
    if in_store(place):
        return ObjectStore(place).read(FILE) or b""
    return _bytes(text_path(place) / FILE)


def _check_unrelated(record: str, data: bytes, why: str, ids: Iterable[str]) -> None:
    """Raise UserError if a record that cannot be read names one of these manifests: what it describes may
    have the samples, and would keep them.
    """
    if any(id_.encode() in data for id_ in ids):
        what = why.removeprefix(record).lstrip(": ")
        raise UserError(
            f"{record} names one of these manifests, and {what}",
            "repair it, remove what it describes, or read it with the version that wrote it",
        )


@dataclass(frozen=True)
class _Record:
    """A file or an object that says what is at `place`, a folder or an address: the record of a manifest,
    whose bytes are not read here, of an export, or of one that is not finished.
    """

    place: str
    name: str
    data: bytes = b""


def _records(files: Sequence[Path]) -> Iterator[_Record]:
    """Yield the records of manifests and exports among these files."""
    for file in files:
        if file.name == FILE:
            yield _Record(places.place_of(file.parent), FILE)
        elif file.name == EXPORT:
            yield _Record(str(file.parent), EXPORT, _bytes(file))
        elif file.match(_PLAN):
            yield _Record(str(file.parents[1]), _PLAN, _bytes(file))


def _objects(address: str) -> Iterator[_Record]:
    """Yield the records of manifests and exports below an address, sorted."""
    store = ObjectStore(address)
    paths = sorted(store.names())
    if not paths:
        raise UserError(f"--in {address}: there is no object below it", "name a prefix that has manifests")
    for path in paths:
        for name in (FILE, EXPORT, _PLAN):
            if path == name or path.endswith(f"/{name}"):
                prefix = f"{address}/{path}".removesuffix(f"/{name}")
                yield _Record(prefix, name, b"" if name == FILE else store.read(path) or b"")


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:  # it may belong to someone else
        warn(f"{path_text(file)} cannot be read ({one_line(error)}): what it leads to is left as it is")
        return b""


def _value(data: bytes, keys: Sequence[str]) -> Any:
    try:
        tree = json.loads(data)
        for key in keys:
            tree = tree[key]
    except (ValueError, KeyError, TypeError):
        return None  # not a record of ours
    return tree
