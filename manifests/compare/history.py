"""The history of one sample: its row in a manifest, in the parents of the manifest, and in the manifests
below a folder or an address that were made from it; and the runs of training there that saw it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uhr.base.errors import UserError
from uhr.base.files import finite
from uhr.base.paths import in_store
from uhr.base.store import ObjectStore
from uhr.manifests.info import FILE, ManifestInfo
from uhr.manifests.lineage import CHECKPOINT, lineage, summary, trained_on, why_absent
from uhr.manifests.manifest import Manifest
from uhr.manifests.places import folders_below, info_at
from uhr.manifests.schema import REJECTED


@dataclass(frozen=True)
class Step:
    """What one manifest says of the sample, or that a run of training saw it.

    found: whether the manifest could be read (if not, `path` is where it was, and `operation` says why), or
    the record of a checkpoint, which names no manifest then.
    present: whether it has a row of the sample. status, reason, error: its verdict. rule: the condition of
    the rule that rejected it. columns: the values of columns that no parent of the manifest had, of those
    among the steps. changed: (before, after) of the columns with another value than in the parents, of which
    the first with a value counts; NaN and infinity are null in both. checkpoints: of a run, those that were
    trained on a manifest with the sample.
    """

    path: str
    id: str
    operation: str
    found: bool = True
    present: bool = False
    status: str | None = None
    reason: str | None = None
    error: str | None = None
    rule: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    changed: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    checkpoints: list[str] = field(default_factory=list)


def history(manifest: Manifest, sample: str, below: Path | str | None = None) -> list[Step]:
    """Return the steps of `sample` (a sample id, the beginning of one, or a uri), from its origin on.

    The chain is that of `lineage`, oldest first. `below` adds the manifests in this folder and its folders,
    or below this address, that were made from one of the chain; and the runs in this folder that were trained
    on one that has the sample, which may have been in it under an earlier id.

    Raises UserError if neither `manifest` nor one of its parents has the sample, or if `below` is no folder.
    """
    if below is not None and not in_store(below) and not Path(below).is_dir():
        raise UserError(f"--in {below} is no folder", "name a folder that has manifests in it")
    chain = lineage(manifest.path)
    chain.sort(key=lambda link: -link["depth"])
    places = {link["id"]: link["path"] for link in chain if link["found"]}
    try:
        sample_id = _sample_id(manifest, places, sample)
    except UserError as error:
        away = next((link for link in chain if not link["found"] and link["why"]), None)
        if away is None:
            raise
        raise UserError(f"{error.what}, and {away['path']} {why_absent(away)}", error.fix) from None
    steps: list[Step] = []
    rows: dict[str, dict[str, Any]] = {}
    seen: set[str] = set()
    having: set[str] = set()
    for link in chain:
        if link["id"] in seen:
            continue
        seen.add(link["id"])
        if not link["found"]:
            steps.append(Step(link["path"], link["id"], why_absent(link), found=False))
            continue
        opened = Manifest.open(link["path"])
        steps.append(_step(opened, sample_id, rows))
        having |= _ids(opened) if steps[-1].present else set()
    if below is not None:
        for opened in _descendants(below, seen):
            steps.append(_step(opened, sample_id, rows))
            having |= _ids(opened) if steps[-1].present else set()
        steps += [] if in_store(below) else _runs(_below(Path(below), CHECKPOINT), having)
    return steps


def _ids(manifest: Manifest) -> set[str]:
    """Return the ids that a manifest has and had."""
    return {manifest.id, *(each.before for each in manifest.info.redactions)}


def _below(folder: Path, name: str) -> list[Path]:
    """Return the records of this name in a folder and in those below it."""
    return sorted(here / name for here, files in folders_below(folder) if name in files)


def _runs(records: Iterable[Path], having: set[str]) -> list[Step]:
    """Return a step for each run that has checkpoints, with these records, trained on one of the manifests;
    and one for each record that cannot be read.
    """
    found: dict[Path, list[str]] = {}
    unread: list[Step] = []
    for file in records:
        data = trained_on(file)
        if data is None:
            unread.append(Step(str(file), "", "a checkpoint's record that cannot be read", found=False))
        elif not having.isdisjoint(data):
            folder = file.parent.parent
            run = folder.parent if folder.name == "checkpoints" else folder
            found.setdefault(run, []).append(file.parent.name)
    runs = [Step(str(run), "", "training", present=True, checkpoints=names) for run, names in found.items()]
    return [*runs, *unread]


def _sample_id(manifest: Manifest, places: dict[str, str], sample: str) -> str:
    """Find the sample in the manifest, or in the nearest of its parents that has it."""
    first: UserError | None = None
    others = [path for id_, path in places.items() if id_ != manifest.id]
    for one in (manifest, *reversed(others)):
        try:
            found = one if isinstance(one, Manifest) else Manifest.open(one)
            return str(found.row(sample)["sample_id"])
        except UserError as error:
            first = first or error
    assert first is not None
    raise first


def _step(manifest: Manifest, sample_id: str, rows: dict[str, dict[str, Any]]) -> Step:
    """Return what `manifest` says, compared with its parents. `rows` has the sample's row in the manifests
    before, by each id that they have or had; that in this one is added.
    """
    with manifest.connect() as connection:
        table = connection.sql("SELECT * FROM samples WHERE sample_id = $1", params=[sample_id])
        found = table.to_arrow_table().to_pylist()
    known = (manifest.name, manifest.id, summary(manifest.info.operation))
    if not found:
        return Step(*known)
    row = finite(found[0])
    before: dict[str, Any] = {}
    parents = [rows[parent.id] for parent in manifest.info.parents if parent.id in rows]
    for parent in parents or list(rows.values())[-1:]:  # of parents that are gone, what is known last
        before |= {name: value for name, value in parent.items() if before.get(name) is None}
    rows.update(dict.fromkeys(_ids(manifest), row))
    values = {name: value for name, value in row.items() if name not in ("status", "reason", "error")}
    columns = {name: value for name, value in values.items() if name not in before and value is not None}
    changed = {
        name: (before[name], value)
        for name, value in values.items()
        if name in before and value != before[name]
    }
    verdict = {name: row[name] for name in ("status", "reason", "error")}
    rule = _rule(manifest.info, row["reason"]) if row["status"] == REJECTED else None
    return Step(*known, present=True, **verdict, rule=rule, columns=columns, changed=changed)


def _rule(info: ManifestInfo, name: str | None) -> str | None:
    return next((rule.where for rule in info.rules if rule.name == name), None)


def _descendants(below: Path | str, known: set[str]) -> Iterator[Manifest]:
    """Yield the manifests below a folder or address that were made from one of `known`, parents before
    children.
    """
    found: list[Path | str]
    if in_store(below):
        names = [f"/{name}" for name in sorted(ObjectStore(below).names())]
        found = [below + name.removesuffix(f"/{FILE}") for name in names if name.endswith(f"/{FILE}")]
    else:
        found = [file.parent for file in _below(Path(below), FILE)]
    infos: dict[Path | str, ManifestInfo] = {}
    for place in found:
        try:
            infos[place] = info_at(place)
        except UserError:
            continue  # not a manifest of ours that can be read, hence not known to be a descendant
    made = set(known)
    while True:
        more = {
            place: info
            for place, info in infos.items()
            if info.id not in made and any(parent.id in made for parent in info.parents)
        }
        if not more:
            return
        for place, info in more.items():
            if info.id not in made:
                made.add(info.id)
                yield Manifest.open(place)
