"""Where a model's files are: a folder on this machine, or a hub id that the user named."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from uhr.base.errors import UserError, nearest
from uhr.base.files import user_path
from uhr.base.hub import snapshot
from uhr.base.paths import check_utf8
from uhr.models.files.containers import MODEL_INDEX as INDEX
from uhr.models.specs.registry import SPECS

_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


@dataclass(frozen=True)
class Source:
    """A model as the user named it. `repository` is set for a hub id, and only then is the network used; with
    `cached` not even then: what the hub's cache holds must do."""

    text: str
    folder: Path | None = None
    repository: str | None = None
    revision: str | None = None
    cached: bool = False

    @classmethod
    def parse(cls, model: str | Path, fetch: bool = True) -> Source:
        """A folder if there is one of that name, else a hub id `org/name[@revision]`."""
        text = str(model)
        check_utf8("model", text)
        folder = user_path(text)
        if folder.is_dir():
            return cls(text, folder=folder)
        if folder.exists():
            raise UserError(f"model '{text}' is a file", f"name the folder that holds its {INDEX}")
        match = _HUB_ID.fullmatch(text)
        if isinstance(model, Path) or match is None or text.startswith("."):
            close = nearest(text, SPECS)
            fix = "name a diffusers folder or a hub id (org/name[@revision]); see `uhr models list`"
            raise UserError(
                f"model '{text}' is not there", f"did you mean {' or '.join(close)}? {fix}" if close else fix
            )
        return cls(text, repository=match[1], revision=match[2], cached=not fetch)

    def pinned(self, folder: Path) -> Source:
        """The same at the commit whose snapshot `folder` is: a branch may move on before the next fetch."""
        return self if self.repository is None else replace(self, revision=folder.name)

    @property
    def exact(self) -> str:
        """What names it on another machine and at another time: a hub id with its revision."""
        return (
            self.text if self.repository is None else "@".join(filter(None, (self.repository, self.revision)))
        )

    def fetch(self, components: Collection[str] = (), configs: Collection[str] = ()) -> Path:
        """The folder with `model_index.json`, and the named components' files, whole; of `configs` the
        configuration alone.

        A local folder is returned as it is. Of a hub repository exactly the named parts are downloaded into
        the hub's own cache; none if it must be there already.
        """
        if self.folder is not None:
            return self.folder
        wanted = [INDEX, *(f"{name}/*" for name in components), *(f"{name}/config.json" for name in configs)]
        # what a model is and how its noise levels are spaced is known without any weights
        wanted += ["transformer/config.json", "scheduler/scheduler_config.json"]
        assert self.repository is not None
        return snapshot(self.repository, self.revision, wanted, cached=self.cached)
