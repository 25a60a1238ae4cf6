"""The work of reconstruction: an image through the VAE and back, in this process or in workers.

Items are megapixels: a large image is many of them, and reports those that are done.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from uhr.base.errors import UserError
from uhr.base.files import atomic
from uhr.runtime.units import Watch, Work
from uhr.train.evaluate.images import ImageRef

if TYPE_CHECKING:
    from uhr.models.loading.opening import ModelName

IMAGE = "image"
"""The column of items with the number of the image: those of one image are one unit."""

_ITEMS = pa.schema([(IMAGE, pa.int64()), ("ref", pa.list_(pa.string()))])


def megapixels(images: Sequence[ImageRef], numbers: Sequence[int]) -> pa.Table:
    """Return a row for each megapixel, rounded up, of some of the images."""
    rows = []
    for number in numbers:
        width, height = images[number].size()
        rows += [{IMAGE: number, "ref": list(images[number])}] * math.ceil(width * height / 1e6)
    return pa.Table.from_pylist(rows, _ITEMS)


def reconstruction(folder: Path, number: int) -> Path:
    """Return the file of the reconstruction of an image."""
    return folder / f"{number:07d}.png"


class ReconstructWork(Work):
    """Writes the reconstruction of an image as a PNG into `folder`.

    Args:
        model: whose VAE it is; `vae` is another one in its place, a folder or a file.
        device: a torch device.
    """

    reports = True

    def __init__(self, model: ModelName, vae: Path | None, device: str, folder: Path) -> None:
        self.model, self.vae, self.device, self.folder = model, vae, device, folder
        self._loaded: Any = None

    def __getstate__(self) -> dict[str, Any]:
        # a loaded VAE is not sent to workers
        return {**vars(self), "_loaded": None}

    def open(self) -> None:
        from uhr.models.loading.model import load_component
        from uhr.train.encode.work.memory import tiled

        model = self.model.open(components=("vae",))
        if self.vae is not None:
            model = model.with_vae(self.vae)
        self._loaded = load_component(model, "vae", "float32", self.device, weights=self.vae)
        tiled(self._loaded)

    def run(self, items: pa.Table, watch: Watch) -> pa.Table:
        from uhr.models.vae.codec import reconstruct
        from uhr.pixels.decode import png

        number = items[IMAGE][0].as_py()
        name, place, item = items["ref"][0].as_py()
        fault = watch.begin(0)
        if fault is not None:
            raise UserError(f"{name}: the process that reconstructed it {fault.message}", "check free memory")
        pixels, _, _ = ImageRef(name, place, item).pixels()

        def report(share: float) -> None:
            watch.done(int(share * items.num_rows))

        try:
            data = png(reconstruct(self._loaded, pixels, report))
        except UserError as error:
            raise UserError(f"{name}: {error.what}", error.fix) from error
        with atomic(reconstruction(self.folder, number)) as temporary:
            temporary.write_bytes(data)
        return pa.table({IMAGE: pa.array([number], pa.int64())})
