"""Compares prompts and references with training data: by bytes, by perceptual hash, and by embedding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uhr.base.console import counted, progress
from uhr.base.errors import one_line
from uhr.base.paths import place_text
from uhr.models.scores.clip import ClipModel
from uhr.train.evaluate.images import References
from uhr.train.evaluate.overlap.embeddings import LEAST, NearestCaptions, NearestImages
from uhr.train.evaluate.overlap.lineage import Training
from uhr.train.evaluate.prompts import EvalItem

if TYPE_CHECKING:
    from uhr.manifests.manifest import Manifest

RADIUS = 4
"""Two images are similar if their perceptual hashes differ in at most so many of 64 bits."""

MOST_NAMED = 20
"""Names of a kind that a result keeps."""

_AT_ONCE = 1 << 22
"""Pairs of perceptual hashes that are compared at once: 32 MiB."""

_HASHES = ("content_hash", "phash")

Names = tuple[str, ...] | None
"""None where a comparison was not possible."""


@dataclass(frozen=True)
class Overlap:
    """Prompts and references that are also in the training data. A name is in the first kind that it fits.

    Args:
        training: the manifests: path, id, number of rows, and of those with a hash of the file, a perceptual
            hash, and an embedding.
        unknown: names of trained weights whose data are not known.
        prompts: names of the first item of each prompt that is a caption of a trained image; case and space
            do not count.
        prompts_near: those whose embedding is near that of a caption; None without a CLIP model.
        exact: references whose file is that of a trained image; None without references, or where the data
            have no hashes.
        similar: those within `RADIUS` bits of a trained image; None in the same cases.
        near: those whose embedding is near that of a trained image; None without references or a CLIP model,
            or where the data have no embeddings and their images cannot be opened.
        prompt_count, reference_count: how many different ones there were to compare.
        clip: the hash of the CLIP model's weights, and clip_place how it was named; None without one.
    """

    training: tuple[dict[str, Any], ...]
    unknown: tuple[str, ...]
    prompts: tuple[str, ...]
    prompts_near: Names
    exact: Names
    similar: Names
    near: Names
    prompt_count: int
    reference_count: int
    clip: str | None
    clip_place: str | None

    def facts(self) -> dict[str, Any]:
        """The overlap for `result.json`: numbers, and the first names of each kind."""
        kinds = {
            "prompts": self.prompts,
            "prompts_near": self.prompts_near,
            "references_exact": self.exact,
            "references_similar": self.similar,
            "references_near": self.near,
        }
        return {
            "training": list(self.training),
            "unknown": list(self.unknown),
            "prompt_count": self.prompt_count,
            "reference_count": self.reference_count,
            "radius": RADIUS,
            "least_cosine": LEAST,
            "clip": self.clip,
            "clip_place": self.clip_place,
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
    for what, count, names in (
        ("prompt", facts["prompt_count"], _PROMPTS),
        ("reference", facts["reference_count"], _REFERENCES),
    ):
        if not count:
            continue
        known = {name: each["count"] for name in names if (each := facts.get(name)) is not None}
        details = [f"{number} {names[name]}{_rows_with(facts, name)}" for name, number in known.items()]
        for how in (how for name, how in names.items() if name not in known):
            without_model = facts.get("clip") is None and how == "by embedding"
            reason = "--clip names the model" if without_model else "the data lack what is compared"
            details.append(f"not compared {how}: {reason}")
        parts.append(f"{sum(known.values())} of {counted(count, what)} ({'; '.join(details)})")
    if facts.get("unknown"):
        parts.append(f"the data of {', '.join(facts['unknown'])} are not known")
    return f"in the training data: {', '.join(parts)}"


def _rows_with(facts: dict[str, Any], name: str) -> str:
    """How many rows of the data were compared, where that is not all of them; else nothing."""
    have, rows = _compared(facts, name)
    return "" if have == rows else f" of the {have:,} of {rows:,} rows that have it"


def _compared(facts: dict[str, Any], name: str) -> tuple[int, int]:
    """How many rows of the data a comparison had, and how many there are. Captions are not counted: a row
    without one shares no prompt.
    """
    training, of = facts["training"], _OF.get(name)
    # results of earlier versions do not have all numbers
    have = [each["rows"] if of is None else each.get(of, each["rows"]) for each in training]
    return sum(have), sum(each["rows"] for each in training)


_OF = {"references_exact": "hashed", "references_similar": "phashed", "references_near": "embedded"}
"""By a kind of overlap of references: which number of rows it was compared with."""

_PROMPTS = {"prompts": "with the same text", "prompts_near": "by embedding"}
_REFERENCES = {
    "references_exact": "as the same file",
    "references_similar": "by perceptual hash",
    "references_near": "by embedding",
}


def cells(facts: dict[str, Any] | None) -> dict[str, str]:
    """The overlap for a table: how many prompts, and how many references, are in the training data by any
    comparison; "≥" where some comparison, rows of the data for it, or the data of some weights are missing.
    """
    return {
        f"{what}s in training data": _cell(facts, f"{what}_count", names)
        for what, names in (("prompt", _PROMPTS), ("reference", _REFERENCES))
    }


def _cell(facts: dict[str, Any] | None, count: str, names: dict[str, str]) -> str:
    if facts is None:
        return "not known"
    if not facts[count]:
        return "–"
    found = {name: each["count"] for name in names if (each := facts.get(name)) is not None}
    if not found:
        return "not compared"
    compared = [_compared(facts, name) for name in found]
    whole = len(found) == len(names) and all(have == rows for have, rows in compared)
    at_least = "" if whole and not facts.get("unknown") else "≥ "
    return f"{at_least}{sum(found.values()):,} of {facts[count]:,}"


def compare(
    training: Training, items: Sequence[EvalItem], references: References | None, device: str
) -> Overlap:
    """Compare prompts and references with the kept rows of the training data.

    device: of the CLIP model; without one embeddings are not compared. Raises UserError if the model cannot
    be loaded, or if the embeddings of the data are of another one.
    """
    clip = None if training.clip is None else ClipModel.load(training.clip, device)
    captions: dict[str, str] = {}
    files: set[str] = set()
    hashes: set[int] = set()
    counts: dict[str, Counter[str]] = {manifest.id: Counter() for manifest in training.manifests}
    for manifest in training.manifests:
        for row in _rows(manifest):
            counts[manifest.id].update(name for name in _HASHES if row.get(name))
            texts = [text for name, text in row.items() if name not in _HASHES and text]
            captions |= {_plain(text): text for text in texts}
            files |= {row["content_hash"]} if row.get("content_hash") else set()
            hashes |= {int(row["phash"], 16)} if row.get("phash") else set()
    # the seeds of a prompt are one prompt
    prompts = list({item.prompt_index: item for item in reversed(items)}.values())[::-1]
    same = tuple(item.name for item in prompts if _plain(item.prompt) in captions)
    prompts_near = None
    if clip is not None:
        others = [item for item in prompts if item.name not in set(same)]
        near = NearestCaptions(clip, [item.prompt for item in others]).near(list(captions.values()))
        prompts_near = tuple(item.name for item, is_near in zip(others, near, strict=True) if is_near)
    vectors = None if clip is None else NearestImages(clip, training.manifests)
    exact, similar, near_images = None, None, None
    if references is not None and (files or hashes or vectors is not None):
        exact, similar, near_images = _references(references, files, hashes, vectors)
    return Overlap(
        training=tuple(
            {
                "path": place_text(m.name),
                "id": m.id,
                "rows": m.info.counts["kept"],
                "hashed": counts[m.id]["content_hash"],
                "phashed": counts[m.id]["phash"],
                "embedded": 0 if vectors is None else vectors.counts[m.id],
            }
            for m in training.manifests
        ),
        unknown=training.unknown,
        prompts=same,
        prompts_near=prompts_near,
        exact=exact,
        similar=similar,
        near=near_images,
        prompt_count=len(prompts),
        reference_count=0 if references is None else len(references.distinct),
        clip=None if clip is None else clip.weights_hash,
        clip_place=training.clip,
    )


def _rows(manifest: Manifest) -> Iterator[dict[str, Any]]:
    """Hashes and captions of the kept rows."""
    import pyarrow as pa

    from uhr.manifests.report.page import CAPTION

    types = {field.name: field.type for field in manifest.schema}
    texts = [name for name, kind in types.items() if CAPTION.fullmatch(name) and pa.types.is_string(kind)]
    columns = [name for name in _HASHES if name in types]
    for batch in manifest.table([*columns, *texts], where="status = 'kept'").to_batches():
        yield from batch.to_pylist()


def _plain(text: str) -> str:
    return one_line(text.casefold())


def _references(
    references: References, files: set[str], hashes: set[int], vectors: NearestImages | None
) -> tuple[Names, Names, Names]:
    """Names of references that are trained images, of those that look like one by their hash, and of those
    that do so by their embedding.
    """
    import cv2
    import numpy as np

    from uhr.pixels.phash import phash

    trained = np.array(sorted(hashes), dtype=np.uint64)
    exact, similar, embedded = [], [], []
    with progress("overlap", len(references.distinct), "references") as advance:
        for ref in references.distinct:
            pixels, sha256, _ = ref.pixels()
            if sha256 in files:
                exact.append(ref.name)
                advance()
                continue
            own = np.uint64(phash(cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)))
            blocks = (trained[start : start + _AT_ONCE] for start in range(0, len(trained), _AT_ONCE))
            if any((np.bitwise_count(block ^ own) <= RADIUS).any() for block in blocks):
                similar.append(ref.name)
            elif vectors is not None:
                vectors.add(pixels)
                embedded.append(ref.name)
            advance()
    found = None if vectors is None else vectors.near()
    near = None
    if found is not None:
        near = tuple(name for name, is_near in zip(embedded, found, strict=True) if is_near)
    return tuple(exact) if files else None, tuple(similar) if hashes else None, near
