"""Which prompts and references have an embedding near one of the training data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from uhr.base.console import progress
from uhr.base.errors import UserError

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
    """Images, and the nearest of trained ones by the column `clip_embedding` of the training data.

    counts: the number of rows with an embedding, by the id of the manifest.
    """

    def __init__(self, clip: ClipModel, manifests: Sequence[Manifest]) -> None:
        self._clip, self._manifests = clip, manifests
        self.counts: dict[str, int] = {manifest.id: 0 for manifest in manifests}
        self._own: list[np.ndarray] = []

    @classmethod
    def of(cls, clip: ClipModel, manifests: Sequence[Manifest]) -> NearestImages | None:
        """Check that the data were embedded by this model. None if none of them has embeddings.

        Raises UserError if they are of another model, as far as the data say by which.
        """
        with_column = [each for each in manifests if COLUMN in each.schema.names]
        for manifest in with_column:
            theirs = {value for key, value in manifest.info.weights.items() if key.endswith("/clip")}
            if theirs and clip.weights_hash not in theirs:
                what = f"--clip: {manifest.name} has embeddings of another model ({min(theirs)[:12]})"
                raise UserError(what, f"name that model; this one is {clip.weights_hash[:12]}")
        if not with_column:
            return None
        made = cls(clip, manifests)
        for manifest in with_column:
            column = manifest.table([COLUMN], where="status = 'kept'")[COLUMN]
            made.counts[manifest.id] = len(column) - column.null_count
        return made if any(made.counts.values()) else None

    def add(self, pixels: np.ndarray) -> None:
        """Embed an image, uint8 [H, W, 3]."""
        embedding = self._clip.embed([self._clip.view.of(pixels)])
        self._own.append(embedding[0].double().cpu().numpy())

    def near(self) -> np.ndarray:
        """Whether each image that was added is near a trained one, bool [images]."""
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
        return best >= LEAST


def _parts(texts: Sequence[str]) -> list[Sequence[str]]:
    return [texts[start : start + _BATCH] for start in range(0, len(texts), _BATCH)]
