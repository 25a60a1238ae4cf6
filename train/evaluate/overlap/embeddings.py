"""Which prompts and references have an embedding near one of the training data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from uhr.base.console import counted, progress, warn
from uhr.base.errors import UserError
from uhr.base.store import StoreError
from uhr.train.evaluate.images import OPENED_BY, ImageRef, row_ref

if TYPE_CHECKING:
    import numpy as np

    from uhr.manifests.manifest import Manifest
    from uhr.models.scores.clip import ClipModel

LEAST = 0.95
"""Two embeddings are near if their cosine is at least this, as in the stage `overlap` of curation."""

COLUMN = "clip_embedding"

_BATCH = 64
"""Captions that are embedded together."""


class NearestCaptions:
    """Prompts, and the nearest of captions by the embeddings of their texts.

    A text beyond the model's context (77 tokens in most models) is cut: of longer ones the beginnings are
    compared.
    """

    def __init__(self, clip: ClipModel, prompts: Sequence[str]) -> None:
        self._clip, self._prompts = clip, prompts

    def near(self, captions: Sequence[str]) -> np.ndarray:
        """Whether each prompt is near a caption, bool [prompts]."""
        import numpy as np

        if not self._prompts or not captions:
            return np.zeros(len(self._prompts), dtype=bool)
        own = np.concatenate([self._embed(part) for part in _parts(self._prompts)])
        best = np.full(len(own), -1.0)
        with progress("overlap", len(captions), "captions") as advance:
            for part in _parts(captions):
                best = np.maximum(best, (own @ self._embed(part).T).max(axis=1))
                advance(len(part))
        return best >= LEAST

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        return self._clip.embed_texts(texts).double().cpu().numpy()


class NearestImages:
    """Images, and the nearest of trained ones by the column `clip_embedding` of the training data. Trained
    images without an embedding are opened and embedded.

    counts: the number of rows with an embedding, by the id of the manifest; after `near` also of those that
        were embedded.
    """

    def __init__(self, clip: ClipModel, manifests: Sequence[Manifest]) -> None:
        """Raises UserError if the data were embedded by another model, as far as they say by which."""
        self._clip, self._manifests = clip, manifests
        self.counts: dict[str, int] = {manifest.id: 0 for manifest in manifests}
        self._own: list[np.ndarray] = []
        with_column = [each for each in manifests if COLUMN in each.schema.names]
        for manifest in with_column:
            theirs = {value for key, value in manifest.info.weights.items() if key.endswith("/clip")}
            if theirs and clip.weights_hash not in theirs:
                what = f"--clip: {manifest.name} has embeddings of another model ({min(theirs)[:12]})"
                raise UserError(what, f"name that model; this one is {clip.weights_hash[:12]}")
        for manifest in with_column:
            column = manifest.table([COLUMN], where="status = 'kept'")[COLUMN]
            self.counts[manifest.id] = len(column) - column.null_count

    def add(self, pixels: np.ndarray) -> None:
        """Embed an image, uint8 [H, W, 3]."""
        self._own.append(self._embed(pixels))

    def _embed(self, pixels: np.ndarray) -> np.ndarray:
        return self._clip.embed([self._clip.view.of(pixels)])[0].double().cpu().numpy()

    def near(self) -> np.ndarray | None:
        """Whether each image that was added is near a trained one, bool [images]; None if no trained image
        has an embedding or can be opened.
        """
        import numpy as np

        from uhr.manifests.selection.embeddings import Vectors

        best = np.full(len(self._own), -1.0)
        if not self._own:
            return best >= LEAST
        own = np.stack(self._own)
        for manifest in self._manifests:
            if not self.counts[manifest.id]:
                continue
            status = np.array(manifest.table(["status"])["status"].to_pylist())
            for _, units in Vectors(manifest, COLUMN).of(np.flatnonzero(status == "kept")):
                if units.shape[1] != own.shape[1]:
                    what = f"--clip: its embeddings have {own.shape[1]} numbers"
                    fix = f"name the model of {manifest.name}, which has {units.shape[1]}"
                    raise UserError(what, fix)
                best = np.maximum(best, (own @ units.T).max(axis=1))
        best = np.maximum(best, self._best_of_others(own))
        return best >= LEAST if any(self.counts.values()) else None

    def _best_of_others(self, own: np.ndarray) -> np.ndarray:
        """The highest cosine of each image, [images, D], with the trained images that have no embedding."""
        import numpy as np

        best = np.full(len(own), -1.0)
        refs = [(manifest.id, ref) for manifest in self._manifests for ref in _without_embedding(manifest)]
        failed: list[str] = []
        if refs:
            with progress("overlap", len(refs), "trained images without an embedding") as advance:
                for id_, ref in refs:
                    try:
                        best = np.maximum(best, own @ self._embed(ref.pixels()[0]))
                        self.counts[id_] += 1
                    except StoreError:
                        raise  # of all images in it, which are not to be called free of overlap
                    except UserError as error:
                        failed.append(error.what)
                    advance()
        if failed:
            what = (
                f"{counted(len(failed), 'trained image')} cannot be opened, and is not compared by embedding"
            )
            warn(f"{what}: {failed[0]}")
        return best


def _without_embedding(manifest: Manifest) -> list[ImageRef]:
    """The images of the kept rows that have no embedding."""
    names = manifest.schema.names
    where = "status = 'kept'" + (f" and {COLUMN} is null" if COLUMN in names else "")
    rows = manifest.table([name for name in OPENED_BY if name in names], where=where).to_pylist()
    return [row_ref(manifest.name, row) for row in rows]


def _parts(texts: Sequence[str]) -> list[Sequence[str]]:
    return [texts[start : start + _BATCH] for start in range(0, len(texts), _BATCH)]
