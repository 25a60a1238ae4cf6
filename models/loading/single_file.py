"""Load one component from one file: safetensors with the keys of BFL, ComfyUI or diffusers, or GGUF.

The file gives the weights only. The configuration comes from the model that the component is for, and the
file must contain every weight of it.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uhr.base.errors import UserError, one_line
from uhr.models.files.containers import check_installed, is_gguf, part_of, stored_tensors
from uhr.models.files.kinds import check_plain
from uhr.models.loading.checks import check_config

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
    """Load a transformer or VAE of class `cls` from `file`.

    Its configuration is that of `component` (`transformer`, `vae`) in `folder`, a model in diffusers' layout,
    with the values of `changes`. GGUF weights stay quantised and are dequantised to `dtype` in each call; all
    others are cast to it. Raises UserError for a file that cannot be read or does not fit the configuration.
    """
    where = f"{component} file {file}"
    check_config(cls, folder / component, f"{component} of {folder}")
    try:
        if is_gguf(file):
            part = _gguf(cls, component, file, folder, dtype, changes or {})
        else:
            part = _assigned(cls, _read(file, component), folder / component, dtype, where, changes or {})
    except (OSError, ValueError, RuntimeError, KeyError, IndexError, AttributeError) as error:
        # diffusers' converters fail in all these ways on keys and shapes of another model
        text = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{where} cannot be read ({text})", _fix(folder / component)) from error
    return part.eval().to(device)


def _fix(folder: Path) -> str:
    return f"name a file of the same model as {folder}"


def _assigned(
    cls: Any,
    checkpoint: dict[str, torch.Tensor],
    folder: Path,
    dtype: torch.dtype,
    where: str,
    changes: Mapping[str, Any],
) -> Any:
    """Return the module with the checkpoint's weights, all of which are required; diffusers converts keys.

    `from_single_file` would do the same, but its error for a missing weight does not name it.
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
    """Return the checkpoint in the keys of the module `part`.

    Raises UserError for a missing and for an unexpected weight.
    """
    needed = part.state_dict()
    # diffusers' keys and the original ones overlap: the majority decides
    own = 2 * len(needed.keys() & checkpoint.keys()) > len(needed)
    state = checkpoint if own else _converted(cls, checkpoint, part.config)
    missing, unexpected = sorted(needed.keys() - state.keys()), sorted(state.keys() - needed.keys())
    if missing or unexpected:
        what = (
            f"lacks {missing[0]}" if missing else f"contains {unexpected[0]}, which this model does not have"
        )
        more = len(missing) + len(unexpected) - 1
        raise UserError(f"{where} {what}" + (f" (and {more} more)" if more else ""), _fix(folder))
    return state


def _converted(cls: Any, checkpoint: dict[str, torch.Tensor], config: Any) -> dict[str, Any]:
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    if cls.__name__ == "AutoencoderKLFlux2":
        return _flux2_vae(checkpoint, config)
    known: Any = SINGLE_FILE_LOADABLE_CLASSES[cls.__name__]
    return known["checkpoint_mapping_fn"](checkpoint=checkpoint, config=config)


def _flux2_vae(checkpoint: dict[str, torch.Tensor], config: Any) -> dict[str, Any]:
    """Convert FLUX.2's VAE, which diffusers does not, from the names of FLUX.1's and the statistics `bn.*`.

    The two convolutions around the latents may be inside encoder and decoder. No published file was read yet.
    """
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    inside = ("encoder.quant_conv.", "decoder.post_quant_conv.")
    named = {
        key.partition(".")[2] if key.startswith(inside) else key: value for key, value in checkpoint.items()
    }
    statistics = {key: value for key, value in named.items() if key.startswith("bn.")}
    return {**convert_ldm_vae_checkpoint(named, config), **statistics}


def _gguf(
    cls: Any, component: str, file: Path, folder: Path, dtype: torch.dtype, changes: Mapping[str, Any]
) -> Any:
    check_installed("gguf", "reading GGUF")
    import torch
    from diffusers import GGUFQuantizationConfig

    # check names and shapes first: diffusers' reader ignores missing and unexpected weights
    names = part_of(stored_tensors(file), component)
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
    """Yield a folder with the component's configuration: `folder`, or with `changes` a temporary one."""
    if not changes:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="uhr-config-") as temporary:
        config = {**cls.load_config(folder / component, local_files_only=True), **changes}
        (Path(temporary) / component).mkdir()
        (Path(temporary) / component / "config.json").write_text(json.dumps(config), encoding="utf-8")
        yield Path(temporary)


def _read(file: Path, component: str) -> dict[str, torch.Tensor]:
    """Read a component's tensors from its safetensors file or from a whole checkpoint, without their
    prefix."""
    from safetensors import SafetensorError, safe_open

    part = part_of(stored_tensors(file), component)
    check_plain({name: tensor for name, (_, tensor) in part.items()}, str(file))
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(key) for name, (key, _) in part.items()}
    except SafetensorError as error:
        raise UserError(f"{file} cannot be read ({one_line(error)})", "download it again") from error
