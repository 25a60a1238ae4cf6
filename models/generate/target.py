"""Where one image is written, with its record: a file in a folder or an object store."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from uhr.base.errors import UserError
from uhr.base.files import json_bytes
from uhr.base.paths import is_url
from uhr.base.store import FolderStore, Store, file_in_store
from uhr.models.generate import record as records
from uhr.models.generate.encoding import Encoding
from uhr.models.generate.record import RecordPlace
from uhr.models.generate.setup import CheckedCall


@dataclass(frozen=True)
class Target:
    """The image `name` in `store`; `text` is what the user wrote."""

    text: str
    store: Store
    name: str
    encoding: Encoding = field(default_factory=Encoding)
    place: RecordPlace = RecordPlace.BOTH

    @classmethod
    def of(cls, text: str, quality: str | None = None, record: str = RecordPlace.BOTH) -> Target:
        """Parse `--out`, `--quality` and `--record`. Raises UserError for a name that is not an image's, and
        for a URL that is not a name in a bucket."""
        place = RecordPlace.named(record)
        if not is_url(text):
            folder, name = FolderStore(str(Path(text).parent)), Path(text).name
            if Path(text).is_dir():
                raise UserError(f"--out {text} is a folder", "name a file in it")
            return cls(text, folder, name, Encoding.of(text, quality), place)
        store, name = file_in_store(text, "image.png")
        return cls(text, store, name, Encoding.of(text, quality), place)

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def file(self) -> Path | None:
        """The image on this machine; None in an object store."""
        return self.store.folder / self.name if isinstance(self.store, FolderStore) else None

    def check(self, given: Path | None = None) -> None:
        """Raise UserError unless the image can be written without replacing foreign files
        (`records.check_out`)."""
        if self.file is not None:
            records.check_out(self.file, given, self.place)
            return
        self.store.probe()
        if self.place.beside:
            json_file = self.store.read(self._record)
            records.check_json(self.store.place(self._record), self.name, json_file)

    def check_call(self, call: CheckedCall) -> None:
        """Raise UserError if the file's format cannot store the image of a call."""
        transparent = call.given is not None and call.given.alpha is not None
        self.encoding.check(self.text, call.width, call.height, transparent)

    @property
    def _record(self) -> str:
        return f"{self.stem}.json"

    def recorded(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return a record with the file's encoding, if it changes pixels."""
        return record if self.encoding.exact else {**record, "file": self.encoding.model_dump()}

    def write(self, image: Any, record: dict[str, Any]) -> None:
        """Write the image and its record, as `records.write` does."""
        if self.file is not None:
            records.write(self.file, image, record, self.encoding, self.place)
            return
        data = records.image_bytes(image, record, self.encoding, self.place)
        # the record of an earlier image must not be left next to this one
        if self.place.beside or self._has_own_record():
            self.store.delete(self._record)
        self.store.write(self.name, data)
        if self.place.beside:
            self.store.write(self._record, json_bytes(record))

    def _has_own_record(self) -> bool:
        """Whether there is a JSON next to the image that is a record."""
        found = self.store.read(self._record)
        return found is not None and records.is_record(found)
