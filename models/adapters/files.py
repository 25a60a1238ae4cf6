"""Read adapter files, check them without weights, and add them to a model.

Files: LoRA in the keys of any program that `formats/reading.py` lists, with or without a part for FLUX.1's
CLIP; URAE's 2K LoRA, its converted LoRA and its 4K minor factors; UltraGen's LoRA; our exports, and the
singular components of a checkpoint.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uhr.base.errors import UserError
from uhr.base.files import sha256_file
from uhr.models.adapters import peft_layers
from uhr.models.adapters.conversion import lora_of_state
from uhr.models.adapters.formats import reading
from uhr.models.adapters.formats.alphas import settings_of
from uhr.models.adapters.formats.keys import KeyLayout, layout_of
from uhr.models.adapters.formats.published import is_urae_minor, urae_factors
from uhr.models.adapters.formats.usage import ORDINARY, Usage
from uhr.models.adapters.low_rank import Lora
from uhr.models.adapters.masked import TokenMask, mask_adapter
from uhr.models.adapters.minor import START, load_minor
from uhr.models.adapters.scales import set_scale, transformer_of
from uhr.models.files.adapter import lora_file

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class AdapterFile:
    """An adapter as read from a file, in the file's dtype, on the CPU.

    lora:     updates of the backbone, by diffusers' path of the module
    clip:     updates of FLUX.1's CLIP
    factors:  whether `lora` consists of minor factors a_t, b_t alone (as URAE publishes them), whose a_0, b_0
              must be decomposed from the weights that they were trained on
    starts:   whether the file also has the singular components that training began with (a checkpoint's)
    notes:    notes for the user about its strength
    config:   the file of peft's settings, if it was read
    """

    path: Path
    lora: Lora
    clip: Lora
    usage: Usage
    factors: bool = False
    starts: bool = False
    notes: tuple[str, ...] = ()
    config: Path | None = None

    @property
    def ranks(self) -> tuple[int, ...]:
        """The distinct ranks of the backbone's modules, in ascending order."""
        return tuple(sorted({part.rank for part in self.lora.values()}))

    def check_fits(self, transformer: Any) -> None:
        """Raise UserError unless the transformer has every module in its shape; it may be on the meta
        device."""
        peft_layers.check_fits(transformer, self.lora, str(self.path))


def read(path: str | Path, layout: KeyLayout) -> AdapterFile:
    """Read an adapter file, or the one in a folder, for a family of backbones.

    peft's `adapter_config.json` next to it is read too. Raises UserError for anything that is not understood.
    """
    file = lora_file(path)
    state, metadata = reading.read_file(file)
    if is_urae_minor(state):
        return AdapterFile(file, urae_factors(state, str(file)), {}, ORDINARY, factors=True)
    starts = any(key.endswith(f".{START}") for key in state)
    if starts:
        own = {key.removeprefix("transformer."): tensor for key, tensor in state.items()}
        parts, settings = reading.Parts(lora_of_state(own), {}), None
    else:
        settings = settings_of(file, state)
        parts = reading.read_state(state, metadata, layout, str(file), settings)
    usage = Usage.of(metadata, parts.backbone, str(file))
    config = None if settings is None else Path(settings.where)
    return AdapterFile(
        file, parts.backbone, parts.clip, usage, starts=starts, notes=parts.notes, config=config
    )


def read_all(paths: Iterable[str | Path], target: Any) -> dict[str, AdapterFile]:
    """Read adapters for a pipeline or a bare transformer, named adapter_0, adapter_1, ... in their order."""
    layout = layout_of(transformer_of(target))
    return {f"adapter_{i}": read(path, layout) for i, path in enumerate(paths)}


def load_adapter(
    target: Any,
    path: str | Path,
    name: str,
    scale: float = 1.0,
    over: Iterable[str] = (),
    cache: Path | None = None,
    device: torch.device | str | None = None,
) -> AdapterFile:
    """Add one file's adapter to a pipeline or a bare transformer, frozen, `scale` times as strong.

    Active adapters stay active. Load before weights are offloaded from memory. `over`, `cache` and `device`
    are for minor factors, see `minor.load_minor`: URAE's 4K file was trained on top of its 2K LoRA, which
    must be on the model at scale 1 and be named in `over`. A file without alpha causes a Python warning.
    """
    file, over = read(path, layout_of(transformer_of(target))), tuple(over)
    if file.factors and not over:
        raise _baseless(file, "add that one first and name it in over=")
    for note in file.notes:
        warnings.warn(note, stacklevel=2)
    _put(target, file, name, over, cache, device)
    set_scale(target, name, scale)
    return file


def load_adapters(
    target: Any,
    files: Mapping[str, AdapterFile],
    scales: Mapping[str, float],
    cache: Path | None = None,
    device: torch.device | str | None = None,
) -> None:
    """Add several adapters, as `load_adapter` does, in this order, each at its scale of `scales`.

    One that was trained on top of another needs it among those before it (`bases`).
    """
    over = bases(files)
    for name, file in files.items():
        _put(target, file, name, over[name], cache, device)
    for name, scale in scales.items():
        set_scale(target, name, scale)


def check(files: Mapping[str, AdapterFile], transformer: Any, guided: bool) -> None:
    """Raise UserError for adapters that do not fit the backbone or each other.

    So does one that acts on a guide's tokens if the sampler has none (`guided` off). `transformer` may be on
    the meta device.
    """
    bases(files)
    for file in files.values():
        file.check_fits(transformer)
        if file.usage.tokens == "guide" and not guided:
            what = f"adapter {file.path} acts on a guide's tokens alone, and this sampler has none"
            raise UserError(what, "sample with ultragen, or leave the adapter out")


def bases(files: Mapping[str, AdapterFile]) -> dict[str, tuple[str, ...]]:
    """Return the names of the adapters that each adapter was trained on top of: () for most.

    For minor factors it is the one LoRA before them that adapts the same modules. An export that names others
    by their hash needs them among `files`. Raises UserError if one is missing or ambiguous.
    """
    names = list(files)
    found = {}
    for i, (name, file) in enumerate(files.items()):
        found[name] = (_base(file, {other: files[other] for other in names[:i]}),) if file.factors else ()
        _check_needed(file, files.values())
    return found


def _base(file: AdapterFile, before: Mapping[str, AdapterFile]) -> str:
    same = [name for name, other in before.items() if not other.factors and set(other.lora) == set(file.lora)]
    if not same:
        raise _baseless(file, "give that one before it")
    if len(same) > 1:
        several = " and ".join(str(before[name].path) for name in same)
        fix = "give any other LoRA after the factors"
        raise UserError(
            f"adapter {file.path}: both {several} could be the LoRA it was trained on top of", fix
        )
    return same[0]


def _baseless(file: AdapterFile, fix: str) -> UserError:
    return UserError(f"adapter {file.path} has minor factors that were trained on top of a 2K LoRA", fix)


def _check_needed(file: AdapterFile, files: Iterable[AdapterFile]) -> None:
    if not file.usage.over:
        return
    hashes = {sha256_file(other.path) for other in files}
    for name, needed in file.usage.over.items():
        if needed not in hashes:
            what = f"adapter {file.path} was trained on top of '{name}' (SHA-256 {needed[:12]}...)"
            raise UserError(what, "give that one as well")


def _put(
    target: Any,
    file: AdapterFile,
    name: str,
    over: tuple[str, ...],
    cache: Path | None,
    device: torch.device | str | None,
) -> None:
    """Add an adapter at scale 1."""
    transformer = transformer_of(target)
    if file.clip and transformer is target:
        raise UserError(f"adapter {file.path} also changes CLIP", "load it into a whole pipeline")
    file.check_fits(transformer)
    if file.factors:
        load_minor(transformer, file.lora, name, cache, over, device)
    elif file.lora:
        peft_layers.put(transformer, file.lora, name, str(file.path))
    if file.usage.tokens == "guide":
        mask_adapter(transformer, name, TokenMask())
    if file.clip:
        inside = "text_model." if hasattr(target.text_encoder, "text_model") else ""
        clip = {inside + module: part for module, part in file.clip.items()}
        peft_layers.put(target.text_encoder, clip, name, str(file.path))
