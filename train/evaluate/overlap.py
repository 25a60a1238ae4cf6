"""What the prompts and references of an evaluation share with the data that a model was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uhr.base.console import counted, progress
from uhr.base.errors import UserError, one_line
from uhr.base.paths import path_text, text_path
from uhr.train.evaluate.images import References
from uhr.train.evaluate.prompts import EvalItem

if TYPE_CHECKING:
    from uhr.manifests.manifest import Manifest

RADIUS = 4
"""Two images are similar if their perceptual hashes differ in at most so many of 64 bits."""

MOST_NAMED = 20
"""Names of a kind that a result keeps."""

_AT_ONCE = 1 << 22
"""Pairs of perceptual hashes that are compared at once: 32 MiB."""


@dataclass(frozen=True)
class Overlap:
    """Prompts and references that are also in the training data.

    Args:
        training: the manifests: path, id, and number of rows.
        prompts: names of items whose prompt is a caption of a trained image; case and space do not count.
        exact: references whose file is that of a trained image; None without references, or where the data
            have no hashes.
        similar: references within `RADIUS` bits of a trained image that are not exact; None in the same
            cases.
        prompt_count, reference_count: how many there were to compare.
    """

    training: tuple[dict[str, Any], ...]
    prompts: tuple[str, ...]
    exact: tuple[str, ...] | None
    similar: tuple[str, ...] | None
    prompt_count: int
    reference_count: int

    def facts(self) -> dict[str, Any]:
        """The overlap for `result.json`: numbers, and the first names of each kind."""
        kinds = {"prompts": self.prompts, "references_exact": self.exact, "references_similar": self.similar}
        return {
            "training": list(self.training),
            "prompt_count": self.prompt_count,
            "reference_count": self.reference_count,
            "radius": RADIUS,
            **{
                name: None if found is None else {"count": len(found), "names": list(found[:MOST_NAMED])}
                for name, found in kinds.items()
            },
        }


def describe(facts: dict[str, Any] | None) -> str:
    """One line on an overlap, for people."""
    if facts is None:
        return "not compared: the training data are not known (--trained-on names them)"
    parts = []
    if facts["prompt_count"]:
        parts.append(f"{facts['prompts']['count']} of {counted(facts['prompt_count'], 'prompt')}")
    for name, what in (("references_exact", "the same file"), ("references_similar", "similar")):
        if facts[name] is not None:
            parts.append(
                f"{facts[name]['count']} of {counted(facts['reference_count'], 'reference')} ({what})"
            )
        elif facts["reference_count"]:
            parts.append(f"references not compared ({what}): the training data have no such hashes")
    return f"in the training data: {', '.join(parts)}"


def training_manifests(places: Iterable[Path]) -> list[Manifest]:
    """Open the training data: manifests, encoded data, or runs of `uhr train` (with the paths of their data).

    Raises UserError if one of them is nothing of this kind, or not there any more.
    """
    from uhr.manifests.info import is_manifest
    from uhr.manifests.manifest import Manifest
    from uhr.train.run.job import FILE, read_run

    found: dict[str, Manifest] = {}
    for place in places:
        folders = [place]
        if (place / FILE).exists():
            folders = [text_path(ref.path) for ref in read_run(place).data]
        for folder in folders:
            if not is_manifest(folder):
                what = f"--trained-on {place}: {folder} is not a manifest"
                raise UserError(what, "name a manifest, encoded data, or a run whose data are there")
            manifest = Manifest.open(folder)
            found.setdefault(manifest.id, manifest)
    return list(found.values())


def compare(
    training: Sequence[Manifest], items: Sequence[EvalItem], references: References | None
) -> Overlap:
    """Compare prompts and references with the kept rows of the training data."""
    captions: set[str] = set()
    files: set[str] = set()
    hashes: set[int] = set()
    for manifest in training:
        for row in _rows(manifest):
            captions |= {
                _plain(text) for name, text in row.items() if name not in ("content_hash", "phash") and text
            }
            files |= {row["content_hash"]} if row.get("content_hash") else set()
            hashes |= {int(row["phash"], 16)} if row.get("phash") else set()
    exact, similar = None, None
    if references is not None and (files or hashes):
        with progress("overlap", len(references.distinct), "references") as advance:
            exact, similar = _similar(references, files, hashes, advance)
    return Overlap(
        training=tuple(
            {"path": path_text(m.path.absolute()), "id": m.id, "rows": m.info.counts["kept"]}
            for m in training
        ),
        prompts=tuple(item.name for item in items if _plain(item.prompt) in captions),
        exact=exact,
        similar=similar,
        prompt_count=len(items),
        reference_count=0 if references is None else len(references.distinct),
    )


def _rows(manifest: Manifest) -> Iterator[dict[str, Any]]:
    """Hashes and captions of the kept rows."""
    import pyarrow as pa

    from uhr.manifests.report.page import CAPTION

    types = {field.name: field.type for field in manifest.schema}
    texts = [name for name, kind in types.items() if CAPTION.fullmatch(name) and pa.types.is_string(kind)]
    columns = [name for name in ("content_hash", "phash") if name in types]
    for batch in manifest.table([*columns, *texts], where="status = 'kept'").to_batches():
        yield from batch.to_pylist()


def _plain(text: str) -> str:
    return one_line(text.casefold())


def _similar(
    references: References, files: set[str], hashes: set[int], advance: Any
) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Names of references that are trained images, and of those that look like one."""
    import cv2
    import numpy as np

    from uhr.pixels.phash import phash

    trained = np.array(sorted(hashes), dtype=np.uint64)
    exact, similar = [], []
    for ref in references.distinct:
        pixels, sha256, _ = ref.pixels()
        if sha256 in files:
            exact.append(ref.name)
        elif len(trained):
            own = np.uint64(phash(cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)))
            blocks = (trained[start : start + _AT_ONCE] for start in range(0, len(trained), _AT_ONCE))
            if any((np.bitwise_count(block ^ own) <= RADIUS).any() for block in blocks):
                similar.append(ref.name)
        advance()
    return tuple(exact) if files else None, tuple(similar) if hashes else None
