"""Components in one file: BFL's and ComfyUI's safetensors, diffusers' own keys, GGUF; read by diffusers.

The file gives weights only. Configuration comes from the model that the component is put into, and every
weight that it wants must be there.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uhr.base.errors import UserError, one_line
from uhr.models.files.containers import check_plain, is_gguf, part_of, stored
from uhr.models.loading.checks import check_config
from uhr.models.loading.quantize import check_installed

if TYPE_CHECKING:
    import torch


def load_single_file(
    cls: Any,
    component: str,
    file: Path,
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    changes: Mapping[str, Any] | None = None,
) -> Any:
    """A transformer or VAE of class `cls` from `file`, configured as `component` of the diffusers `folder`,
    but for the values of `changes`.

    GGUF weights stay quantised and are computed with in `dtype`; all others are cast to it.
    """
    where = f"{component} file {file}"
    check_config(cls, folder / component, f"{component} of {folder}")
    try:
        if is_gguf(file):
            part = _gguf(cls, component, file, folder, dtype, changes or {})
        else:
            part = _assigned(cls, _read(file, component), folder / component, dtype, where, changes or {})
    except (OSError, ValueError, RuntimeError, KeyError, IndexError, AttributeError) as error:
        # the converters look up the keys that they expect, and FLUX.1's splits by its real width
        words = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{where} cannot be read ({words})", _fix(folder / component)) from error
    return part.eval().to(device)


def _fix(folder: Path) -> str:
    return f"is it of the same model as {folder}?"


def _assigned(
    cls: Any,
    checkpoint: dict[str, torch.Tensor],
    folder: Path,
    dtype: torch.dtype,
    where: str,
    changes: Mapping[str, Any],
) -> Any:
    """The module with the checkpoint's weights, each of which must be there; keys are converted by diffusers.

    `from_single_file` would do the same, and fail without a name where a weight lacks.
    """
    import torch

    config = {**cls.load_config(folder, local_files_only=True), **changes}
    with torch.device("meta"):
        part = cls.from_config(config)
    state = _fitted(cls, checkpoint, part, folder, where)
    part.load_state_dict({key: value.to(dtype) for key, value in state.items()}, assign=True)
    return part


def _fitted(
    cls: Any, checkpoint: dict[str, torch.Tensor], part: Any, folder: Path, where: str
) -> dict[str, torch.Tensor]:
    """The checkpoint in the keys of the module `part`; UserError for a weight that lacks, and for one too
    many."""
    wanted = part.state_dict()
    # the two namings share some keys
    own = 2 * len(wanted.keys() & checkpoint.keys()) > len(wanted)
    state = checkpoint if own else _converted(cls, checkpoint, part.config, where)
    lacking, strange = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if lacking or strange:
        what = f"lacks {lacking[0]}" if lacking else f"holds {strange[0]}, which this model has not"
        more = len(lacking) + len(strange) - 1
        raise UserError(f"{where} {what}" + (f" (and {more} more)" if more else ""), _fix(folder))
    return state


def _converted(cls: Any, checkpoint: dict[str, torch.Tensor], config: Any, where: str) -> dict[str, Any]:
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    known: Any = SINGLE_FILE_LOADABLE_CLASSES.get(cls.__name__)
    if known is None:
        raise UserError(
            f"{where} is not in diffusers' keys, and it converts no {cls.__name__}",
            "name a folder of diffusers'",
        )
    return known["checkpoint_mapping_fn"](checkpoint=checkpoint, config=config)


def _gguf(
    cls: Any, component: str, file: Path, folder: Path, dtype: torch.dtype, changes: Mapping[str, Any]
) -> Any:
    check_installed("gguf", "reading GGUF")
    import torch
    from diffusers import GGUFQuantizationConfig

    # by names and shapes alone: diffusers' reader leaves out what lacks, and passes over what is too many
    names = part_of(stored(file), component)
    config = {**cls.load_config(folder / component, local_files_only=True), **changes}
    with torch.device("meta"):
        empty = cls.from_config(config)
        named = {name: torch.empty(tensor.shape) for name, (_, tensor) in names.items()}
    _fitted(cls, named, empty, folder / component, f"{component} file {file}")
    with _configured(cls, component, folder, changes) as place:
        return cls.from_single_file(
            str(file),
            config=str(place),
            subfolder=component,
            local_files_only=True,
            quantization_config=GGUFQuantizationConfig(compute_dtype=dtype),
            torch_dtype=dtype,
        )


@contextlib.contextmanager
def _configured(cls: Any, component: str, folder: Path, changes: Mapping[str, Any]) -> Generator[Path]:
    """A folder with the component's configuration: `folder`, or with `changes` a temporary one."""
    if not changes:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="uhr-config-") as temporary:
        config = {**cls.load_config(folder / component, local_files_only=True), **changes}
        (Path(temporary) / component).mkdir()
        (Path(temporary) / component / "config.json").write_text(json.dumps(config), encoding="utf-8")
        yield Path(temporary)


def _read(file: Path, component: str) -> dict[str, torch.Tensor]:
    """A component's tensors in a safetensors file; of a whole checkpoint those of its part, without its
    prefix."""
    from safetensors import SafetensorError, safe_open

    part = part_of(stored(file), component)
    check_plain({name: tensor for name, (_, tensor) in part.items()}, str(file))
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(key) for name, (key, _) in part.items()}
    except SafetensorError as error:
        raise UserError(f"{file} cannot be read ({error})", "download it again") from error
