"""The work on a unit of captions: text embeddings. Runs in this process or in a worker."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from uhr.runtime.units import Watch, Work
from uhr.train.encode.config import EncodeConfig
from uhr.train.encode.stored.reuse import StoredRows
from uhr.train.encode.stored.tensors import all_finite, to_bytes
from uhr.train.encode.work.memory import empty_gpu_cache

if TYPE_CHECKING:
    from uhr.models.zoo import Model

TEXT_ITEMS = pa.schema([("text_key", pa.string()), ("caption", pa.string())])


def text_rows(encoders: Iterable[str], tensors: Iterable[str]) -> pa.Schema:
    """The columns of a unit's part: numbers of tokens by encoder, and the family's text tensors.

    `reused` is whether a row was copied from another folder.
    """
    counts = [(f"{name}_tokens", pa.int32()) for name in encoders]
    cells = ((name, pa.binary()) for name in tensors)
    return pa.schema([*TEXT_ITEMS, *counts, *cells, ("reused", pa.bool_())])


class TextWork(Work):
    """Encode captions to embeddings, at the encoders' full padded lengths.

    reuse: encoded folders whose embeddings are taken over.
    """

    reports: ClassVar[bool] = True

    def __init__(self, model: Model, config: EncodeConfig, device: str, reuse: tuple[Path, ...] = ()) -> None:
        self.model, self.config, self.device, self.reuse = model, config, device, reuse
        self._encoders: Any = None
        self._stored: StoredRows | None = None

    def open(self) -> None:
        if self.reuse:
            self._stored = StoredRows.texts(self.reuse)
        else:
            self._load()

    def _load(self) -> None:
        """Load the encoders; where embeddings are reused, only for the first caption that has none."""
        from uhr.models.zoo import load_text_encoders

        if self._encoders is None:
            self._encoders = load_text_encoders(self.model, self.config.text_dtype, self.device)

    def close(self) -> None:
        """Free the encoders' memory, as the VAE is loaded next."""
        self._encoders = None
        empty_gpu_cache()

    def run(self, items: pa.Table, watch: Watch) -> pa.Table:
        from uhr.base.errors import UserError
        from uhr.models.families.registry import FAMILIES

        spec = self.model.spec
        schema = text_rows(spec.text_lengths, FAMILIES[spec.family].text_tensors)
        rows = []
        for index, item in enumerate(items.to_pylist()):
            fault = watch.begin(index)
            if fault is not None:
                raise UserError(f"encoding the caption '{item['caption'][:80]}' failed ({fault.message})")
            names = [name for name in schema.names if name not in (*item, "reused")]
            stored = None if self._stored is None else self._stored.get(item["text_key"], names)
            found = self._embed(item["caption"]) if stored is None else stored
            rows.append({**item, **found, "reused": stored is not None})
            watch.done(len(rows))
        return pa.Table.from_pylist(rows, schema)

    def _embed(self, caption: str) -> dict[str, Any]:
        """Encode one caption. Not several: its embedding must not depend on its neighbours."""
        from uhr.base.errors import UserError
        from uhr.models.families.registry import FAMILIES
        from uhr.models.zoo import Prompt

        self._load()
        found = FAMILIES[self.model.spec.family].embed(self._encoders, Prompt(caption))
        cells = {name: to_bytes(found.texts[name][0], self.config.text_dtype) for name in found.texts}
        if not all(all_finite(cell, self.config.text_dtype) for cell in cells.values()):
            what = f"the embedding of '{caption[:80]}' is not finite in {self.config.text_dtype}"
            raise UserError(what, "--set text_dtype=float32")
        return {f"{count.encoder}_tokens": count.tokens[0] for count in found.counts} | cells
