"""Where a model's files are: a folder on this machine, or a hub id that the user named."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from uhr.base.errors import UserError, nearest
from uhr.base.files import disk_fault, user_path
from uhr.base.paths import check_utf8
from uhr.models.containers import ADAPTER, SAFETENSORS, check_folder, is_gguf, kind_of, stored
from uhr.models.registry import SPECS

_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
INDEX = "model_index.json"


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
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

        wanted = [INDEX, *(f"{name}/*" for name in components), *(f"{name}/config.json" for name in configs)]
        # what a model is and how its noise levels are spaced is known without any weights
        wanted += ["transformer/config.json", "scheduler/scheduler_config.json"]
        assert self.repository is not None
        try:
            return Path(
                snapshot_download(
                    self.repository,
                    revision=self.revision,
                    allow_patterns=wanted,
                    ignore_patterns=["*.bin", "*.pt", "*.msgpack", "*.onnx*"],
                    local_files_only=self.cached,
                )
            )
        except GatedRepoError as error:
            page = f"https://huggingface.co/{self.repository}"
            raise UserError(
                f"the hub keeps '{self.repository}' behind a licence",
                f"accept it on {page}, then run `hf auth login`",
            ) from error
        except LocalEntryNotFoundError as error:
            if self.cached:
                what = f"'{self.text}' is no folder here and not in the hub's cache"
                raise UserError(what, f"if you want it from the hub, name it: --model {self.text}") from error
            raise UserError(
                f"'{self.text}' is no folder here and not in the hub's cache, and the hub is out of reach",
                "check the path, or the network",
            ) from error
        except (HfHubHTTPError, OSError, ValueError) as error:
            if (reason := disk_fault(error)) is not None:
                fix = "make room, or set HF_HOME to a folder of another disk"
                raise UserError(f"the hub's cache cannot take '{self.text}' ({reason})", fix) from error
            words = " ".join(str(error).split())
            raise UserError(
                f"'{self.text}' is no folder here, and the hub did not give it ({words})",
                "check the path, or the hub id and its revision",
            ) from error


def lora_file(path: str | Path) -> Path:
    """The safetensors file of an adapter: the file itself, or the only one in a folder.

    Raises UserError where there is none, and for a file that is something else, which it names.
    """
    path = user_path(path)
    check_utf8("adapter", path)
    if path.is_dir():
        path = _only_file(path)
    elif not path.exists():
        raise UserError(f"adapter {path} is not there", "name a .safetensors file or the folder of one")
    if is_gguf(path):
        raise UserError(f"adapter {path} is a GGUF file", "take the .safetensors file that it was made from")
    kind = kind_of(stored(path))
    if kind is not None and kind != ADAPTER:
        fix = "give a backbone as the model, or as other weights of one; adapters are LoRA files"
        raise UserError(f"adapter {path} holds {kind}, not an adapter", fix)
    return path


def _only_file(folder: Path) -> Path:
    if (folder / INDEX).is_file():
        raise UserError(f"adapter {folder} is a whole model, not an adapter", "give it as the model")
    files = sorted(path for suffix in SAFETENSORS for path in folder.glob(f"*{suffix}"))
    if not files:
        check_folder(folder, f"adapter {folder}")
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise UserError(
            f"adapter folder {folder} must hold one safetensors file (found: {found})", "name the file"
        )
    return files[0]
