"""Lineage: the chain of manifests that a manifest was made from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from uhr.base.errors import UserError, one_line
from uhr.base.paths import in_store, text_path
from uhr.base.store import StoreError
from uhr.manifests import places
from uhr.manifests.info import UNFINISHED, ManifestInfo, Parent

CHECKPOINT = "checkpoint.json"
"""The file of a checkpoint that says, among other things, which data it was trained on."""

CONFIGURATION = ("stages", "rules", "weights", "files", "versions")
"""What a link has of a manifest's configuration. A slice has that of its parent."""


def find_parent(child: Path | str, parent: Parent) -> Path | str | None:
    """Find the parent at its recorded path or address, or next to the child under its name; None if it is at
    neither.
    """
    return look_for(child, parent)[0]


def look_for(child: Path | str, parent: Parent) -> tuple[Path | str | None, str]:
    """Find the parent as `find_parent` does. If it is not found, say too where it may be: which of the places
    `cannot be reached` or `cannot be read`, with the error; empty if no manifest is at either.
    """
    then: Path | str = parent.path if in_store(parent.path) else text_path(parent.path)
    name = then.rpartition("/")[2] if isinstance(then, str) else then.name
    place = places.place_of(child)
    near = f"{place.rpartition('/')[0]}/{name}" if in_store(place) else text_path(place).parent / name
    why = ""
    for each in (then, near):
        try:
            info = places.info_at(each)
        except (UserError, OSError) as error:
            why = why or _unread(each, error)
            continue
        if parent.id in {info.id, *(each.before for each in info.redactions)}:
            return each, ""
    return None, why


def _unread(place: Path | str, error: UserError | OSError) -> str:
    """Say why a manifest that may be at `place` was not read; empty if there is none."""
    if isinstance(error, UserError) and not isinstance(error, StoreError):
        return f"cannot be read ({error.what})" if places.is_manifest_at(place) else ""
    return f"cannot be reached ({error.what if isinstance(error, UserError) else one_line(error)})"


def lineage(path: Path | str) -> list[dict[str, Any]]:
    """Return the manifest at `path`, then its parents, depth first: depth, role, id, path, operation of each,
    and what its values come from: source, stages, rules, hashes of weights and files, versions.

    A parent that is not found has `found` false, only what its child records of it, and `why`, as `look_for`
    says it.
    """
    return list(_walk(path, places.info_at(path), "", 0))


def _walk(path: Path | str, info: ManifestInfo, role: str, depth: int) -> Iterator[dict[str, Any]]:
    yield {
        "depth": depth,
        "role": role,
        "id": info.id,
        "path": str(path) if isinstance(path, str) else places.shown(path),
        "found": True,
        "created": info.created,
        "uhr": info.uhr,
        "rows": info.counts["rows"],
        "operation": info.operation,
        "source": info.root if info.origin is None else info.origin,
        **{name: info.model_dump(mode="json")[name] for name in CONFIGURATION},
    }
    for parent in info.parents:
        place, why = (None, "") if parent.role == UNFINISHED else look_for(path, parent)
        if place is None:
            known = {"role": parent.role, "id": parent.id, "path": parent.path}
            yield {"depth": depth + 1, **known, "found": False, "why": why}
        else:
            yield from _walk(place, places.info_at(place), parent.role, depth + 1)


def _step(value: Any) -> str:
    """The value of a step of a slice as the command line has it: names, `entropy=50% per aspect_bucket`,
    `a lake=100`.
    """
    if isinstance(value, list):
        return ", ".join(_step(each) for each in value)
    if isinstance(value, dict) and "by" in value:
        size = f"{100 * value['share']:g}%" if "share" in value else value.get("rows")
        per = value.get("per")
        return f"{value['by']}={size}" + (f" per {', '.join(per)}" if per else "")
    if isinstance(value, dict) and "to" in value:
        vector = f" (vector {value['vector'][:16]})" if "vector" in value else ""
        return f"{value['to']}={value['rows']}{vector}"
    return str(value)


def trained_on(file: Path) -> list[str] | None:
    """Return the ids of the manifests and encoded data that the record of a checkpoint names; None if it
    cannot be read. A JSON file without data is no record of ours, and names none.
    """
    try:
        tree = json.loads(file.read_bytes())
        data = tree.get("data", []) if isinstance(tree, dict) else []
        return [str(entry.get(key)) for entry in data for key in ("id", "manifest_id")]
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def why_absent(link: Mapping[str, Any]) -> str:
    """Return why a link of a lineage that has `found` false has no rows."""
    if link["role"] == UNFINISHED:
        return "an unfinished run, which is no manifest"
    return link["why"] or "not found any more"


def summary(operation: dict[str, Any]) -> str:
    """Return a short text for an operation, such as `slice: where entropy > 5, sample 100, seed 0`."""
    kind = operation.get("kind", "?")
    if kind == "slice":
        steps = {k: v for k, v in operation.items() if k != "kind"}
        split = steps.pop("split", None)
        texts = [f"{name} {_step(value)}" for name, value in steps.items()]
        if split:
            texts.append("split " + ",".join(f"{name}={share:g}" for name, share in split.items()))
        return f"slice: {', '.join(texts)}"
    if kind == "review":
        return (
            f"review: {', '.join(f'{count} {what}' for what, count in operation.items() if what != 'kind')}"
        )
    if kind == "encode":
        return f"encode: {operation.get('spec')}, {operation.get('config', {}).get('resolution')} px"
    name = operation.get("pipeline", {}).get("name") if isinstance(operation.get("pipeline"), dict) else None
    return f"{kind} {name}" if name else kind
