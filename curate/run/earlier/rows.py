"""The earlier results of the rows of one unit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from uhr.base.store import StoreError
from uhr.curate.planning.planned import PlannedStage
from uhr.curate.run.earlier.files import StageKey
from uhr.curate.run.earlier.known import Answer, Earlier, KnownRow
from uhr.curate.stage import BatchStage
from uhr.manifests.sources.blobs import NO_LIMITS
from uhr.pixels.decode import PixelLimits
from uhr.pixels.types import PixelFault
from uhr.runtime.units import UnitFault

StageKeys = Mapping[tuple[str, bool], StageKey]
"""What the results of a stage depend on, by its label and whether it is about patches."""


class Outdated(Exception):
    """The bytes of a row are not those of its earlier results, which have already been used."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


class EarlierFault(Exception):
    """A stage failed on this row in an earlier run."""

    def __init__(self, fault: UnitFault) -> None:
        super().__init__(fault.message)
        self.fault = fault


class EarlierRows:
    """What is known of the rows of a unit, by their index.

    outdated: rows of which nothing is known: their bytes are others by now. limits: of an image beyond them
    no result is taken over that needs its pixels: the stages are called, and fail as in a run from nothing.
    """

    def __init__(
        self, earlier: Earlier, keys: StageKeys, outdated: set[int], limits: PixelLimits = NO_LIMITS
    ) -> None:
        self._limits = limits
        self._earlier = earlier
        self._keys = keys
        self._outdated = outdated
        self._rows: dict[int, KnownRow] = {}
        self._checked: set[int] = set()

    def __bool__(self) -> bool:
        """Whether there are earlier results of any row."""
        return bool(self._earlier)

    def answer(self, index: int, row: Mapping[str, Any], planned: PlannedStage[Any]) -> Answer | None:
        """Return the result of a stage for a row; None if it has to be called."""
        if not self._earlier or index in self._outdated:
            return None
        found = self._find(index, row, planned)
        if found is not None and found.fault is None and _takes_pixels(planned) and self._is_beyond(row):
            return None
        return found

    def lacks(self, index: int, row: Mapping[str, Any], stages: Sequence[PlannedStage[Any]]) -> bool:
        """Whether one of these stages, in this order, has to be called for a row."""
        if not self._earlier or index in self._outdated:
            return True
        known = dict(row)
        for planned in stages:
            if not planned.sees(row):
                continue
            answer = self._find(index, known, planned)
            if answer is None:
                return True
            if answer.fault is not None:
                return False
            known.update(answer.values)
        return self._is_beyond(row) and any(map(_takes_pixels, stages))

    def patches(
        self, index: int, row: Mapping[str, Any], planned: PlannedStage[Any]
    ) -> list[dict[str, Any]] | None:
        """Return the rows of the patches of an image; None if they have to be cut."""
        return self._known(index, row).patches(self._key(row, planned), row)

    def preview(self, index: int, row: Mapping[str, Any], long_side: int) -> tuple[bytes, int, int] | None:
        """Return the preview of a row: JPEG, width and height in px; None if it has to be made.

        Raises PixelFault("unavailable") if the store that has it does not give it now.
        """
        if not self._earlier or index in self._outdated or self._is_beyond(row):
            return None
        try:
            return self._known(index, row).preview(long_side)
        except StoreError as error:
            raise PixelFault("unavailable", f"its preview cannot be read ({error.what})") from None
        except (OSError, pa.ArrowException):
            return None  # the manifest that had it has been removed or damaged meanwhile

    def content_hash(self, index: int, row: Mapping[str, Any]) -> str | None:
        """Return the hash that the bytes of a row had; None if it is not known."""
        if not self._earlier or index in self._outdated:
            return None
        return self._known(index, row).content_hash

    def unchecked(self, index: int, row: Mapping[str, Any]) -> str | None:
        """Return the hash that the bytes of a row must have for its results to be used, the first time."""
        if not self._earlier or index in self._outdated or index in self._checked:
            return None
        self._checked.add(index)
        return self._known(index, row).content

    def may_search(self, index: int) -> bool:
        """Whether the results of other files with the same bytes have not been looked for."""
        known = self._rows.get(index)
        return known is not None and not known.searched

    def search(self, index: int, row: Mapping[str, Any], content_hash: str) -> None:
        """Look for the results of other files with these bytes."""
        self._known(index, row).search(content_hash, row.get("box"))

    def forget_patches(self, image: Mapping[str, Any], indices: Iterable[int]) -> None:
        """Forget what is known of the patches of an image that is larger than the limits."""
        if self._is_beyond(image):
            self._outdated.update(indices)

    def _is_beyond(self, row: Mapping[str, Any]) -> bool:
        """Whether an image is known to be larger than the limits."""
        if row.get("box") is not None:
            return False  # its size is that of the patch
        width, height, size = (row.get(name) for name in ("width", "height", "file_size"))
        pixels = 0 if width is None or height is None else width * height
        return pixels > self._limits.pixels or (size or 0) > self._limits.file_bytes

    def _find(self, index: int, row: Mapping[str, Any], planned: PlannedStage[Any]) -> Answer | None:
        known, key = self._known(index, row), self._key(row, planned)
        answer, content = known.answer(key, row), row.get("content_hash")
        if answer is None and content is not None and not known.searched:
            known.search(content, row.get("box"))
            answer = known.answer(key, row)
        return answer

    def _known(self, index: int, row: Mapping[str, Any]) -> KnownRow:
        if index not in self._rows:
            self._rows[index] = self._earlier.of(row)
        return self._rows[index]

    def _key(self, row: Mapping[str, Any], planned: PlannedStage[Any]) -> StageKey:
        of_patches = row.get("parent_id") is not None
        key = self._keys.get((planned.label, of_patches))
        return key if key is not None else self._keys[planned.label, not of_patches]


def _takes_pixels(planned: PlannedStage[Any]) -> bool:
    """Whether the bytes of the whole image are read for a stage."""
    if isinstance(planned.stage, BatchStage):
        return bool(planned.stage.views)
    return getattr(planned.stage, "reads", None) != "header"
