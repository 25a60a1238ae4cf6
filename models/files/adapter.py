"""Find the file of an adapter."""

from __future__ import annotations

from pathlib import Path

from uhr.base.errors import UserError
from uhr.base.files import user_path
from uhr.base.paths import check_utf8, or_similar
from uhr.models.files.containers import is_gguf, stored_tensors
from uhr.models.files.folders import MODEL_INDEX, check_folder
from uhr.models.files.foreign import SAFETENSORS
from uhr.models.files.kinds import ADAPTER, kind_of
from uhr.models.files.run_steps import adapter_of_step, all_steps, split_step


def lora_file(path: str | Path) -> Path:
    """Return the safetensors file of an adapter: the file itself, the only one in a folder, or that of a step
    of a training run, `RUN@STEP`.

    Raises UserError if there is none, and for a file of another kind, which the error names.
    """
    path = user_path(path)
    check_utf8("adapter", path)
    if (named := split_step(path)) is not None:
        path = adapter_of_step(*named)
    elif path.is_dir():
        path = _only_file(path)
    elif not path.exists():
        fix = or_similar(path, "name a .safetensors file or the folder of one")
        raise UserError(f"adapter {path} is not there", fix)
    if is_gguf(path):
        raise UserError(f"adapter {path} is a GGUF file", "use the .safetensors file that it was made from")
    kind = kind_of(stored_tensors(path))
    if kind is not None and kind != ADAPTER:
        fix = "give a backbone as the model, or as other weights of one; adapters are LoRA files"
        raise UserError(f"adapter {path} is {kind}, not an adapter", fix)
    return path


def _only_file(folder: Path) -> Path:
    if (folder / MODEL_INDEX).is_file():
        raise UserError(f"adapter {folder} is a whole model, not an adapter", "give it as the model")
    files = sorted(path for suffix in SAFETENSORS for path in folder.glob(f"*{suffix}"))
    if not files and (steps := all_steps(folder)):
        which = f"name a step of it, {folder}@{steps[-1]}"
        raise UserError(
            f"adapter {folder} is a training run", f"{which}; it has: {', '.join(map(str, steps))}"
        )
    if not files:
        check_folder(folder, f"adapter {folder}")
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise UserError(
            f"adapter folder {folder} must contain one safetensors file (found: {found})", "name the file"
        )
    return files[0]
