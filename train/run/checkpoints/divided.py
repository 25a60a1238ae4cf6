"""The state of a run whose weights are divided among processes, as torch.distributed.checkpoint stores it.

Each process writes its own parts, and any number of processes reads them, divided in any way or whole. The
names in the store are `part/NAME`, `ema/NAME`, and `optimiser/NAME.KEY`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from uhr.base.files import write_json
from uhr.train.run.checkpoints import optim
from uhr.train.run.checkpoints.state import TrainState
from uhr.train.run.processes.parallel import Ranks

FOLDER = "divided"
INDEX = f"{FOLDER}/.metadata"
"""The file that torch writes last."""

VALUES = "divided.json"
"""What is not a tensor: {"part": metadata of the part's file, "optimiser": `OptimiserState.values`}."""


def save(state: TrainState, folder: Path, metadata: Mapping[str, str], ranks: Ranks) -> None:
    """Write the state into a folder that exists. Every process must call it.

    metadata: that of the part's file.
    """
    found = optim.optimiser_state(state.optimiser, state.parameters, copied=False)
    tensors = _named(state) | {f"optimiser/{name}": tensor for name, tensor in found.tensors.items()}
    _quiet()
    try:
        dcp.save(tensors, checkpoint_id=folder / FOLDER)
    except CheckpointException as error:
        # the same in every process: what failed in one of them, such as a full disk
        raise next(iter(error.failures.values()))[0] from error
    if ranks.first:
        write_json(folder / VALUES, {"part": dict(metadata), "optimiser": found.values})


def load(folder: Path, step: int, state: TrainState) -> None:
    """Restore what `save` wrote, bit for bit, however the parameters are divided now."""
    tensors = _named(state)
    stored = _stored(folder)
    moments: dict[str, torch.Tensor] = {}
    for name, shape in _shapes(stored, "optimiser/").items():
        parameter = next((p for key, p in state.parameters.items() if name.startswith(f"{key}.")), None)
        like = parameter is not None and parameter.shape == shape.size
        assert parameter is None or not like or parameter.dtype == shape.properties.dtype
        moments[name] = torch.zeros_like(parameter.detach()) if like else _empty(shape)
    _read(folder, tensors | {f"optimiser/{name}": tensor for name, tensor in moments.items()})
    state.step = step
    values = json.loads((folder / VALUES).read_text(encoding="utf-8"))["optimiser"]
    optim.load_optimiser_state(state.optimiser, state.parameters, optim.OptimiserState(moments, values))


def read(folder: Path, prefix: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Whole tensors on the CPU by their names after `prefix` ("part" or "ema"), and the part's metadata."""
    found = {name: _empty(shape) for name, shape in _shapes(_stored(folder), f"{prefix}/").items()}
    _read(folder, {f"{prefix}/{name}": tensor for name, tensor in found.items()})
    return found, json.loads((folder / VALUES).read_text(encoding="utf-8"))["part"]


def _named(state: TrainState) -> dict[str, torch.Tensor]:
    average = state.ema or {}
    return {f"part/{name}": tensor.detach() for name, tensor in state.stored.items()} | {
        f"ema/{name}": tensor for name, tensor in average.items()
    }


def _stored(folder: Path) -> Mapping[str, Any]:
    return dcp.FileSystemReader(folder / FOLDER).read_metadata().state_dict_metadata


def _shapes(stored: Mapping[str, Any], prefix: str) -> dict[str, TensorStorageMetadata]:
    return {
        name.removeprefix(prefix): each
        for name, each in stored.items()
        if name.startswith(prefix) and isinstance(each, TensorStorageMetadata)
    }


def _empty(shape: TensorStorageMetadata) -> torch.Tensor:
    return torch.empty(shape.size, dtype=shape.properties.dtype)


def _read(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Fill tensors in place."""
    _quiet()
    dcp.load(tensors, checkpoint_id=folder / FOLDER, no_dist=not dist.is_initialized())


def _quiet() -> None:
    """Keep torch from logging two lines for each tensor, which takes longer than writing a small one."""
    logging.getLogger("c10d-NullHandler-dcp_logger").setLevel(logging.WARNING)
