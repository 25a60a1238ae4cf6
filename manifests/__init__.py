"""The contract between curation and training: immutable, self-describing sets of samples in plain Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uhr.manifests.selection.slicing import Slice


def open(path: Path | str) -> Slice:
    """Open the manifest in the folder `path` to slice it: `open(m).where("entropy > 5").write(out)`.

    Raises UserError as `Manifest.open`.
    """
    from uhr.manifests.manifest import Manifest
    from uhr.manifests.selection.slicing import Slice

    return Slice(Manifest.open(path))
