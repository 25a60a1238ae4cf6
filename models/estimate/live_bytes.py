"""Count how many bytes of tensors are alive at once in a computation, without doing it.

On the meta device a forward pass creates the same tensors as elsewhere, with sizes and without memory. The
code that runs is the model's own, so nothing has to be kept in step with it. Attention counts as one kernel
of linear memory, as on a GPU.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors created inside the block: `now`, and the `peak` so far.

    The count is exact and equal on every machine. It does not see what an allocator caches or what a kernel
    allocates inside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {id_of(t) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage(), given)
        return out

    def _count(self, storage: Any, given: set[int]) -> None:
        key = storage._cdata
        if key in self._seen or key in given:
            return
        self._seen.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def id_of(tensor: torch.Tensor) -> int:
    """Return a number that is equal for tensors that share memory."""
    return tensor.untyped_storage()._cdata


class FusedAttention(TorchFunctionMode):
    """Replaces scaled dot-product attention by an empty output: all that a flash kernel allocates."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        given = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            query = args[0] if args else given["query"]
            value = args[2] if len(args) > 2 else given["value"]
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **given)


def peak_bytes(run: Callable[[], Any]) -> int:
    """Return the most bytes alive at once of the tensors that `run` creates, on any device."""
    with torch.no_grad(), LiveBytes() as live, FusedAttention():
        run()
    return live.peak
