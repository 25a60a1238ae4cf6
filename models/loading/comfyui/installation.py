"""The model files of a ComfyUI installation, by kind.

ComfyUI reads each kind from folders below `models/` (folder_paths.py) and from those that
`extra_model_paths.yaml` names: sections with an optional `base_path`, and for each kind one path per line.
Older names of a kind (`unet`, `clip`) are read as well. Files in subfolders are named with these.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from uhr.base.errors import UserError, nearest, one_line
from uhr.base.files import user_path
from uhr.models.files.foreign import SAFETENSORS

KINDS = {
    "diffusion_models": ("diffusion_models", "unet", "unet_gguf"),
    "checkpoints": ("checkpoints",),
    "text_encoders": ("text_encoders", "clip", "clip_gguf"),
    "vae": ("vae",),
    "loras": ("loras",),
}
"""The kinds of files that are looked for, with the names of their folders, the newest first."""

EXTRA_PATHS = "extra_model_paths.yaml"

SUFFIXES = (*SAFETENSORS, ".gguf")


@dataclass(frozen=True)
class Installation:
    """An installation: its folder, and the folders of each kind of `KINDS`, in the order of their search."""

    root: Path
    folders: dict[str, tuple[Path, ...]]

    @classmethod
    def open(cls, root: Path) -> Installation:
        """Read an installation at its folder, its parent (the portable version's) or its `models` folder.

        Raises UserError if there are no models, and for an `extra_model_paths.yaml` that cannot be read.
        """
        given = user_path(root)
        if not given.is_dir():
            raise UserError(f"--comfyui {root} does not exist", "name the folder of ComfyUI")
        places = (given, given / "ComfyUI", given.parent if given.name == "models" else given)
        found = next((place for place in places if (place / "models").is_dir()), None)
        extra = next((place / EXTRA_PATHS for place in places if (place / EXTRA_PATHS).is_file()), None)
        if found is None and extra is None:
            what = f"--comfyui {root} has neither models/ nor {EXTRA_PATHS}"
            raise UserError(what, "name the folder of ComfyUI, with its main.py")
        base = found or given
        folders: dict[str, list[Path]] = {kind: [] for kind in KINDS}
        for kind, names in KINDS.items():
            folders[kind] += [base / "models" / name for name in names]
        if extra is not None:
            for kind, path in _extra_folders(extra):
                folders[kind].append(path)
        return cls(base, {kind: tuple(dict.fromkeys(paths)) for kind, paths in folders.items()})

    def files(self, kind: str) -> dict[str, Path]:
        """Return the weight files of a kind by name, relative to their folder. Of equal names the first
        counts, as in ComfyUI."""
        found: dict[str, Path] = {}
        for folder in self.folders[kind]:
            for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
                if path.suffix.lower() in SUFFIXES and path.is_file():
                    found.setdefault(path.relative_to(folder).as_posix(), path)
        return found

    def named(self, kind: str, name: str) -> Path | None:
        """Return the file of that name, with or without its suffix or its subfolder; None if there is none.

        Raises UserError if the name without the subfolder is that of several.
        """
        files = self.files(kind)
        for path in (files.get(name), *(files.get(f"{name}{suffix}") for suffix in SUFFIXES)):
            if path is not None:
                return path
        last = {key: path for key, path in files.items() if name in (Path(key).name, Path(key).stem)}
        if len(last) > 1:
            raise UserError(f"{kind} has several files called {name}", f"name one: {', '.join(last)}")
        return next(iter(last.values()), None)

    def lora(self, name: str) -> Path:
        """Return the LoRA of that name. Raises UserError if there is none."""
        found = self.named("loras", name)
        if found is None:
            close = nearest(name, [Path(key).stem for key in self.files("loras")])
            fix = f"did you mean {' or '.join(close)}?" if close else "name a file, or one in models/loras"
            raise UserError(f"adapter {name} is neither a file nor a LoRA of {self.root}", fix)
        return found


def _extra_folders(file: Path) -> list[tuple[str, Path]]:
    """Return kind and folder of every path in an `extra_model_paths.yaml`."""
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(
            f"{file} cannot be read ({one_line(error)})", "correct it, as ComfyUI reads it"
        ) from error
    found = []
    for section in tree.values() if isinstance(tree, dict) else ():
        if not isinstance(section, dict):
            continue
        base = section.get("base_path")
        place = file.parent / Path(str(base)).expanduser() if base else file.parent
        for kind, names in KINDS.items():
            texts = [section[name] for name in names if isinstance(section.get(name), str)]
            found += [
                (kind, place / line.strip()) for text in texts for line in text.splitlines() if line.strip()
            ]
    return found
