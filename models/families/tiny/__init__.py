"""Make a tiny checkpoint: a diffusers folder of the real classes with seeded random weights.

The weights are drawn so that signals neither die nor explode: images have contrast, and prompt, guidance
and seed each change them. The VAE's latents have the statistics that the real normalisation expects.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from uhr.base.errors import unknown
from uhr.base.files import saving, usual_modes
from uhr.base.run_folder import FolderLayout, RunFolder, all_or_nothing
from uhr.models.files.write import as_os_error
from uhr.models.specs.registry import FAMILY_SPECS, SPECS, get
from uhr.models.specs.spec import ModelSpec


def make_tiny(spec_name: str, folder: str | Path, seed: int = 0) -> Path:
    """Write a tiny checkpoint that the stock pipeline's `from_pretrained` loads; return the folder's path.

    The same seed gives the same bytes. Raises UserError for a folder that is not empty, and for a full disk,
    in which case nothing is left in the folder.
    """
    spec = get(spec_name)
    if not spec.tiny:
        raise unknown("tiny spec", spec_name, [name for name, s in SPECS.items() if s.tiny])
    folder = Path(folder)
    RunFolder(folder, FolderLayout("the model", (), (), option="")).check()
    import torch

    from uhr.base.quiet import quiet_loading

    # the classes draw initial weights: that must not change the caller's generator
    with torch.random.fork_rng(devices=[]), quiet_loading():
        pipeline = _family(spec).pipeline(spec, seed)
        with (
            saving(folder, "free space, or name another folder"),
            all_or_nothing(folder),
            as_os_error(folder),
        ):
            pipeline.save_pretrained(folder)
            usual_modes(folder)
    return folder


def component(spec: ModelSpec, name: str) -> Any:
    """Return a module of a tiny pipeline with its class's initial weights, for its shapes."""
    return _family(spec).COMPONENTS[name](spec)


def _family(spec: ModelSpec) -> Any:
    return importlib.import_module(FAMILY_SPECS[spec.family].tiny)
