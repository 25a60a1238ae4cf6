"""The folder of a LoRA and its record: what was requested, and what was chosen when it began."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from uhr.base.config import Config, read_versioned
from uhr.base.errors import UserError
from uhr.base.files import write_json
from uhr.base.paths import path_text, text_path
from uhr.base.run_folder import FolderLayout, RunFolder
from uhr.models.loading.opening import ModelName
from uhr.models.publish.lora_file import file_name

FILE = "lora.json"
SCHEMA_VERSION = 1
SET, ENCODED, RECIPE, RUN = "set", "encoded", "recipe.yaml", "run"
LOCK = ".lock"


class LoraRequest(Config):
    """What the user requested.

    folder: absolute, as `path_text` writes it. resolution: px; None is the model's native size. sets: changes
    to the recipe.
    """

    folder: str
    model: str
    base: str | None = None
    spec: str | None = None
    name: str
    trigger: str | None = None
    resolution: int | None = None
    sets: tuple[str, ...] = ()

    @property
    def images(self) -> Path:
        return text_path(self.folder)

    @property
    def named(self) -> ModelName:
        return ModelName(self.model, self.spec, self.base)


class LoraRecord(Config):
    """The content of `lora.json`.

    gpu: its name, if it is planned for one, and settings: those of memory and time that were chosen for it.
    missing: `EncodeConfig.missing`.
    """

    schema_version: int = SCHEMA_VERSION
    request: LoraRequest
    gpu: str | None
    settings: tuple[str, ...]
    missing: str | None


class LoraFolder:
    """The output folder of `uhr train lora`, by default called as the LoRA is. Raises UserError for a name
    that is no file's.
    """

    def __init__(self, path: Path | None, name: str) -> None:
        file = Path(file_name(name))
        self.path = Path(file.stem) if path is None else path
        self.file = self.path / file
        names = (FILE, SET, ENCODED, RECIPE, RUN, LOCK, file.name)
        self.folder = RunFolder(self.path, FolderLayout("the LoRA", names, (FILE,), option=""))

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def read(self, request: LoraRequest) -> LoraRecord | None:
        """The record, or None in a new folder. Raises UserError for a folder of something else, and for a
        record of another request.
        """
        if not (self.path / FILE).is_file():
            self.folder.check()
            return None
        found = read_versioned(
            LoraRecord, self.path / FILE, SCHEMA_VERSION, "remove the folder, or choose another --name"
        )
        before, after = found.request.model_dump(), request.model_dump()
        differs = [f"{key} ({_text(before[key])})" for key in before if before[key] != after[key]]
        if differs:
            what = f"{self.path} already contains a LoRA with another {', another '.join(differs)}"
            raise UserError(what, "give the same command to resume it, or choose another --name")
        self.folder.check()
        return found

    def lock(self) -> AbstractContextManager[None]:
        """Be the only process that works in the folder."""
        return self.folder.lock(LOCK)

    def begin(self, record: LoraRecord) -> None:
        """Make the folder, with the record."""
        self.folder.claim()
        write_json(self.path / FILE, record.model_dump(mode="json"))


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(f"--set {each}" for each in value) or "no --set"
    return "none" if value is None else str(value)


def folder_text(folder: Path) -> str:
    """The text of a folder in a request: absolute, so that the command may be given elsewhere again."""
    return path_text(folder.absolute())
