"""Components of tiny checkpoints, read from the disk once and copied for every further load.

Most of a command on a tiny model is the libraries' work of building modules and finding places for weights,
the same each time. Tests whose claim is about loading do not use it.
"""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

MOST = 64
"""Number of components that are kept; the oldest go first."""


class Loaded:
    """Replaces `checks.load_whole`, and returns a copy of what the same files gave before.

    Files are the same if their names and bytes are, wherever they are. What is loaded with options that have
    no hash (a quantisation) is loaded each time.
    """

    def __init__(self, load: Callable[..., Any]) -> None:
        self._load = load
        self._kept: dict[Any, Callable[[], Any]] = {}

    def __call__(self, cls: Any, folder: Path, where: str, options: Mapping[str, Any] | None = None) -> Any:
        given = tuple(sorted((options or {}).items()))
        if not folder.is_dir() or not all(isinstance(value, Hashable) for _, value in given):
            return self._load(cls, folder, where, options)
        files = sorted(path for path in folder.iterdir() if path.is_file())
        key = cls, given, *((path.name, hashlib.sha256(path.read_bytes()).digest()) for path in files)
        if key not in self._kept:
            found = self._load(cls, folder, where, options)
            if len(self._kept) == MOST:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = copier(found)
        return self._kept[key]()


def copier(part: Any) -> Callable[[], Any]:
    """Return a maker of copies of a component: its modules with their weights, or what `deepcopy` gives."""
    import torch

    whole = isinstance(part, torch.nn.Module) and _is_plain(part)
    return (lambda: _module(part, {})) if whole else (lambda: copy.deepcopy(part))


def _is_plain(part: Any) -> bool:
    """Whether modules have other modules and tensors only where torch puts them."""
    import torch

    def plain(value: Any) -> bool:
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, CONTAINERS) else ()
        owners = (getattr(each, "__self__", each) for each in (value, *inside))
        return not any(isinstance(each, torch.nn.Module | torch.Tensor) for each in owners)

    usual = ("_modules", "_parameters", "_buffers")
    return all(
        plain(value) for each in part.modules() for name, value in vars(each).items() if name not in usual
    )


CONTAINERS = (dict, list, set, tuple)
OWN = (dict, OrderedDict, list, set)
"""What a module may change in place. A configuration, which is a dict with attributes, is shared."""


def _module(module: Any, made: dict[int, Any]) -> Any:
    """Copy a module. `made` has the copies of modules and tensors, so that what is shared stays shared."""
    if id(module) in made:
        return made[id(module)]
    new = made[id(module)] = object.__new__(type(module))
    values = new.__dict__
    for name, value in vars(module).items():
        # hooks and names of buffers, mostly none
        values[name] = value if type(value) not in OWN else value.copy() if value else type(value)()
    for kind in ("_parameters", "_buffers"):
        for name, tensor in values[kind].items():
            values[kind][name] = _tensor(tensor, made)
    for name, each in values["_modules"].items():
        values["_modules"][name] = None if each is None else _module(each, made)
    return new


def _tensor(tensor: Any, made: dict[int, Any]) -> Any:
    import torch

    if tensor is None or id(tensor) in made:
        return made.get(id(tensor))
    new = tensor.detach().clone()
    if isinstance(tensor, torch.nn.Parameter):
        new = torch.nn.Parameter(new, requires_grad=tensor.requires_grad)
    made[id(tensor)] = new
    return new
