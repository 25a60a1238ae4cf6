"""Reports on a manifest that were written elsewhere than beside it: they have previews of its samples."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from uhr.base.console import warn
from uhr.base.errors import one_line
from uhr.base.paths import in_store, path_text, text_path
from uhr.base.store import ObjectStore
from uhr.manifests.info import ManifestInfo
from uhr.manifests.manifest import Manifest

SUFFIX = ".html"

_HEAD = 4096
"""Bytes of a page in which the id of its manifest is."""

_ID = re.compile(rb'<meta name="uhr-manifest" content="([0-9a-f]{64})">')


def reports_of(
    known: Mapping[str, ManifestInfo], files: Iterable[Path], addresses: Sequence[str]
) -> dict[str, str]:
    """Return the place of the manifest by the path or address of its report.

    known: the manifests, by place. files: pages of this machine. addresses: prefixes that are searched for
    pages.
    """
    by_id = {info.id: place for place, info in known.items()}
    by_id |= {each.before: place for place, info in known.items() for each in info.redactions}
    heads = [*((path_text(file), _head(file)) for file in files), *_objects(addresses)]
    found = {place: _ID.search(head) for place, head in heads}
    ids = {place: match[1].decode() for place, match in found.items() if match is not None}
    return {place: by_id[id_] for place, id_ in sorted(ids.items()) if id_ in by_id}


def write_again(report: str, manifest: str) -> None:
    """Write a report again from what its manifest has now."""
    from uhr.manifests.report import write_report

    made = Manifest.open(manifest if in_store(manifest) else text_path(manifest))
    write_report(made, report if in_store(report) else text_path(report))


def _head(file: Path) -> bytes:
    try:
        with file.open("rb") as page:
            return page.read(_HEAD)
    except OSError as error:  # it may belong to someone else
        warn(f"{path_text(file)} cannot be read ({one_line(error)}): if it is a report, it is left as it is")
        return b""


def _objects(addresses: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    for address in addresses:
        store = ObjectStore(address)
        for name in store.names():
            if name.endswith(SUFFIX) and store.size(name):
                yield store.place(name), store.read_range(name, None, 0, _HEAD)
