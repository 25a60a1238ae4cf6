"""Where one image is written: a PNG with its JSON next to it, in a folder or an object store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from uhr.base.errors import UserError
from uhr.base.files import json_bytes
from uhr.base.paths import is_url
from uhr.base.store import FolderStore, Store, open_store
from uhr.models.generate import record as records


@dataclass(frozen=True)
class Target:
    """The PNG `name` in `store`; `text` is what the user wrote."""

    text: str
    store: Store
    name: str

    @classmethod
    def of(cls, text: str) -> Target:
        """Parse `--out`. Raises UserError for a URL that is not a PNG's name in a bucket."""
        if not is_url(text):
            return cls(text, FolderStore(str(Path(text).parent)), Path(text).name)
        place, _, name = text.rpartition("/")
        if not is_url(place):
            raise UserError(f"--out {text} names no file in a bucket", "write it as s3://bucket/image.png")
        records.check_name(text)
        return cls(text, open_store(place), name)

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def file(self) -> Path | None:
        """The PNG on this machine; None in an object store."""
        return self.store.folder / self.name if isinstance(self.store, FolderStore) else None

    def check(self, given: Path | None = None) -> None:
        """Raise UserError unless the image can be written without replacing foreign files
        (`records.check_out`)."""
        if self.file is not None:
            records.check_out(self.file, given)
            return
        self.store.probe()
        json_file = self.store.read(self._record)
        records.check_json(self.store.place(self._record), self.name, json_file)

    @property
    def _record(self) -> str:
        return f"{self.stem}.json"

    def write(self, image: Any, record: dict[str, Any]) -> None:
        """Write the image and its record, as `records.write` does."""
        if self.file is not None:
            records.write(self.file, image, record)
            return
        data = records.png_bytes(image, record)
        json_file = json_bytes(record)
        # the record of an earlier image must not be left next to this one
        self.store.delete(self._record)
        self.store.write(self.name, data)
        self.store.write(self._record, json_file)
