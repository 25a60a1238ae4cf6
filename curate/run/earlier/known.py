"""Look up what is known of a row before its stages are called: their values, or how they failed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from uhr.curate.run.earlier.files import FAULT, PREVIEW_AT, EarlierFile, StageKey, earlier_files
from uhr.runtime.units import UnitFault

MOST_COPIES = 1024
"""Rows with the same bytes, copies or patches, that are looked at."""


class Answer(NamedTuple):
    """The result that a stage has for a row: its values, or its fault."""

    values: Mapping[str, Any]
    fault: UnitFault | None = None


class _Found(NamedTuple):
    """A row of earlier results."""

    file: EarlierFile
    row: dict[str, Any]


class KnownRow:
    """The earlier results of one row.

    `content` is the hash that its bytes must have for this, where its source gives them no version; None if
    nothing has to be checked.
    """

    def __init__(self, earlier: Earlier, found: list[_Found], content: str | None) -> None:
        self._earlier = earlier
        self._found = found
        self.content = content
        self.searched = False

    @property
    def content_hash(self) -> str | None:
        """The hash of the bytes, if an earlier run computed it."""
        hashes = (found.row.get("content_hash") for found in self._found)
        return next((value for value in hashes if value is not None), None)

    def answer(self, key: StageKey, row: Mapping[str, Any]) -> Answer | None:
        """Return the result of a stage; None if it has to be called.

        row: the columns known so far. A result is valid only where the columns that the stage needs have the
        values that they had.
        """
        for found in self._found:
            for number, other in enumerate(found.file.info.stages):
                if other.fingerprint != key.fingerprint or other.columns != key.columns:
                    continue
                if any(row.get(need) != found.row.get(need) for need in key.needs):
                    continue
                if found.row[found.file.info.has(number)]:
                    return Answer({name: found.row.get(name) for name in key.columns})
                stage, kind, message = (found.row[name] for name in FAULT)
                if stage == other.label and other.limits == key.limits:
                    return Answer({}, UnitFault(kind, message))
        return None

    def preview(self, long_side: int) -> tuple[bytes, int, int] | None:
        """Return the preview of this size: JPEG, width and height in px; None if it has to be made."""
        for file, row in self._found:
            if file.info.preview not in (0, long_side):
                continue
            if row.get("_jpeg") is not None:
                return row["_jpeg"], row["_preview_width"], row["_preview_height"]
            if row.get(PREVIEW_AT) is not None:
                found = file.preview(row[PREVIEW_AT])
                if file.info.preview == long_side or (found and _has_size(found, row, long_side)):
                    return found
        return None

    def patches(self, key: StageKey, row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """Return the rows of the patches that a stage cuts from this image; None if they are not known."""
        for found in self._found:
            one = KnownRow(self._earlier, [found], None)
            answer = one.answer(key, row)
            if answer is None or answer.fault is not None:
                continue
            numbers = found.file.find(found.row["sample_id"])
            rows = [found.file.row(number) for number in numbers]
            return [each for each in rows if each.get("parent_id") == found.row["sample_id"]]
        return None

    def search(self, content_hash: str, box: list[int] | None) -> None:
        """Add the results of images with these bytes, wherever they were, or of this box in them; does so
        once.
        """
        if not self.searched:
            self.searched = True
            self._found += self._earlier.by_content(content_hash, box)


def _has_size(preview: tuple[bytes, int, int], row: Mapping[str, Any], long_side: int) -> bool:
    """Whether a preview is one of this long side, or its image, being smaller, would give the same."""
    sides = [row[name] for name in ("width", "height") if row.get(name) is not None]
    return len(sides) == 2 and max(preview[1:]) == min(long_side, max(sides))


class Earlier:
    """All files with earlier results in the folder of a run's units.

    fetched: whether the source fetches its images. Then one that has no version counts as unchanged, unless
    its bytes are read and have another hash. Others without a version are only found by their content.
    """

    def __init__(self, folder: Path, fetched: bool) -> None:
        self._files = [EarlierFile(path) for path in earlier_files(folder)]
        self._fetched = fetched

    def __bool__(self) -> bool:
        return bool(self._files)

    def of(self, row: Mapping[str, Any]) -> KnownRow:
        """Return what is known of a row by its id and the version of its object."""
        found, content = [], None
        for file in self._files:
            for number in file.find(row["sample_id"]):
                other = file.row(number)
                if other["sample_id"] != row["sample_id"]:
                    continue
                if other["source_version"] != row["source_version"]:
                    continue
                if row["source_version"] is None:
                    before, now = other.get("content_hash"), row.get("content_hash")
                    if now is not None and now != before:
                        continue
                    if now is None and not (self._fetched and content in (None, before)):
                        continue
                    content = before
                found.append(_Found(file, other))
        return KnownRow(self, found, content)

    def by_content(self, content_hash: str, box: list[int] | None) -> list[_Found]:
        """Return the row of each file with these bytes that has the most results: of a whole image, or of a
        patch.
        """
        found = []
        for file in self._files:
            rows = [file.row(number) for number in file.find(content_hash)[:MOST_COPIES]]
            same = [r for r in rows if r.get("content_hash") == content_hash and r.get("box") == box]
            same.sort(key=lambda row: -sum(row[file.info.has(n)] for n in range(len(file.info.stages))))
            found += [_Found(file, row) for row in same[:1]]
        return found
