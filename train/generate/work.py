"""The work of a worker: loads the model once, then generates one item after another into the store."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from uhr.base.errors import UserError, one_line
from uhr.base.files import json_bytes
from uhr.base.store import StoreError, open_store
from uhr.models.generate.request import Item, Request
from uhr.runtime.units import UnitFault, Watch, Work

if TYPE_CHECKING:
    from uhr.models.generate.session import GeneratedImage

IMPORTS = (
    "uhr.models.samplers.core.pipelines.families",
    "uhr.models.generate.session",
    "uhr.models.generate.setup",
    "transformers.modeling_utils",
)
"""Slow imports of `GenerateWork.open`, which take most of the time before a tiny model's first image."""

REQUEST, IMAGES, FAILED = "request.json", "pictures", "failed"

ITEMS = pa.schema([("item", pa.string()), ("failed_before", pa.bool_()), ("image_sha256", pa.string())])
"""`item` is an `Item` as JSON; `image_sha256` is the hash of its input image when the set was checked, or
null.
"""

ROWS = pa.schema([("name", pa.string()), ("error", pa.string())])
"""The result of each item; `error` is null if its image was written."""


def image_name(name: str) -> str:
    return f"{IMAGES}/{name}.png"


def record_name(name: str) -> str:
    """The name of an item's record; it is written after the image, and marks the item as done."""
    return f"{IMAGES}/{name}.json"


def failure_name(name: str) -> str:
    return f"{FAILED}/{name}.json"


def failure(name: str, prompt: str, error: str) -> bytes:
    """The content of the file `failure_name`."""
    return json_bytes({"name": name, "prompt": prompt, "error": error})


def items_table(
    items: Iterable[Item], failed_before: Iterable[bool], images: Mapping[Path, str] | None = None
) -> pa.Table:
    """The items as rows. `images`: by path, the SHA-256 of the input images that were checked."""
    images = images or {}
    rows = [
        {
            "item": item.model_dump_json(),
            "failed_before": failed,
            "image_sha256": None if item.image is None else images.get(item.image),
        }
        for item, failed in zip(items, failed_before, strict=True)
    ]
    return pa.Table.from_pylist(rows, ITEMS)


class GenerateWork(Work):
    """Generates images into `out`, an absolute folder or a URL.

    threads: None keeps the process's number. costs: whether the records beside the images have `cost`, their
    seconds and peak memory (bytes), which differ each time. An item that fails is recorded under `failed/`,
    and the work continues with the next one. The request's files have the paths that the user gave, also in
    records: a worker starts in the folder of the command (`uhr.runtime`).
    """

    def __init__(
        self,
        request: Request,
        out: str,
        previews: Path | None = None,
        threads: int | None = None,
        costs: bool = False,
    ) -> None:
        self.request, self.out, self.previews = request, out, previews
        self.threads, self.costs = threads, costs
        self._session: Any = None

    def open(self) -> None:
        import torch

        from uhr.models.generate.session import Session
        from uhr.models.generate.setup import Setup

        if self.threads is not None:
            torch.set_num_threads(self.threads)

        self._store = open_store(self.out)
        if not self._store.exists(REQUEST):
            what = f"{self.out} is another folder on {platform.node()} than where the command was started"
            raise UserError(what, "name a folder that all machines share, or s3://bucket/prefix")
        self._session = Session(Setup.of(self.request))

    def run(self, items: pa.Table, watch: Watch) -> pa.Table:
        rows = []
        for index, row in enumerate(items.to_pylist()):
            item = Item.model_validate_json(row["item"])
            fault = watch.begin(index)
            # an earlier attempt of this unit may have made the image before its process died
            error = None
            if not all(self._store.exists(name(item.name)) for name in (record_name, image_name)):
                error = self._make(item, fault, row["image_sha256"])
                if error is None and row["failed_before"]:
                    self._store.delete(failure_name(item.name))
            rows.append({"name": item.name, "error": error})
        return pa.Table.from_pylist(rows, ROWS)

    def _make(self, item: Item, fault: UnitFault | None, image: str | None) -> str | None:
        """Generate and write one item; return its error, if any.

        image: the SHA-256 that its input image must have, None for any.
        """
        import torch

        try:
            if fault is not None:
                raise UserError(f"the process that generated it {fault.message}", "check the free memory")
            self._write(item, self._generate(item, image))
        except StoreError:
            raise
        except (UserError, torch.OutOfMemoryError) as error:
            message = one_line(error)
            if not isinstance(error, UserError):
                torch.cuda.empty_cache()
                message = f"out of GPU memory ({message}): --offload model, --quantize, or a smaller size"
            self._store.write(failure_name(item.name), failure(item.name, item.prompt, message))
            return message
        return None

    def _generate(self, item: Item, image: str | None) -> GeneratedImage:
        import torch

        from uhr.models.generate.record import write_stages

        call = self._session.setup.call(item)
        if call.given is not None and image not in (None, call.given.sha256):
            what = f"image {item.image} changed after the set was checked"
            raise UserError(what, "run the command again")
        if self._session.setup.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(self._session.setup.device)
        generated = self._session.generate(call, stages=self.previews is not None)
        if self.previews is not None:
            name = Path(item.name)
            write_stages(self.previews / name.parent, name.name, generated.stages)
        return generated

    def _write(self, item: Item, generated: GeneratedImage) -> None:
        from uhr.models.generate.record import image_bytes

        data = image_bytes(generated.image, generated.record)
        self._store.write(image_name(item.name), data)
        png = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        tree = {**generated.record, "png": png}
        if self.costs:
            tree["cost"] = {"seconds": round(generated.seconds, 3), "peak_memory": generated.peak_memory}
        self._store.write(record_name(item.name), json_bytes(tree, sort_keys=True))
