"""The place of a model's files: a folder on this machine, or a hub id that the user named."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from uhr.base.errors import UserError, nearest
from uhr.base.files import user_path
from uhr.base.hub import snapshot
from uhr.base.paths import check_utf8
from uhr.models.files.folders import MODEL_INDEX as INDEX
from uhr.models.specs.registry import SPECS

_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


@dataclass(frozen=True)
class ModelSource:
    """A model as the user named it.

    `repository` is set for a hub id; only then is the network used. With `cached` it is not used at all, and
    the files must be in the hub's cache.
    """

    text: str
    folder: Path | None = None
    repository: str | None = None
    revision: str | None = None
    cached: bool = False

    @classmethod
    def parse(cls, model: str | Path, fetch: bool = True) -> ModelSource:
        """Return the folder of that name if there is one, else the hub id `org/name[@revision]`.

        Raises UserError for a file, and for a name that is neither.
        """
        text = str(model)
        check_utf8("model", text)
        folder = user_path(text)
        if folder.is_dir():
            return cls(text, folder=folder)
        if folder.exists():
            raise UserError(f"model '{text}' is a file", f"name the folder that contains its {INDEX}")
        match = _HUB_ID.fullmatch(text)
        if isinstance(model, Path) or match is None or text.startswith("."):
            close = nearest(text, SPECS)
            fix = "name a diffusers folder or a hub id (org/name[@revision]); see `uhr models list`"
            raise UserError(
                f"model '{text}' is not there", f"did you mean {' or '.join(close)}? {fix}" if close else fix
            )
        return cls(text, repository=match[1], revision=match[2], cached=not fetch)

    def pinned(self, folder: Path) -> ModelSource:
        """Return the source at the commit whose snapshot `folder` is: a branch may move before the next
        fetch."""
        return self if self.repository is None else replace(self, revision=folder.name)

    @property
    def exact(self) -> str:
        """The name for records: a hub id with its revision, or the user's own name of a folder."""
        return (
            self.text if self.repository is None else "@".join(filter(None, (self.repository, self.revision)))
        )

    def fetch(self, components: Collection[str] = (), configs: Collection[str] = ()) -> Path:
        """Return the folder with `model_index.json`, all files of `components`, and the config.json of
        `configs`.

        A local folder is returned as it is. Of a hub repository exactly these files are downloaded into the
        hub's own cache; with `cached` they must already be there.
        """
        if self.folder is not None:
            return self.folder
        needed = [INDEX, *(f"{name}/*" for name in components), *(f"{name}/config.json" for name in configs)]
        # the spec, the noise levels and the VAE's factor are known from these, without any weights
        needed += ["transformer/config.json", "scheduler/scheduler_config.json", "vae/config.json"]
        assert self.repository is not None
        return snapshot(self.repository, self.revision, needed, cached=self.cached)
