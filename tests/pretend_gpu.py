"""A GPU that is not there: tensors without values on "cuda", where what mixes devices or dtypes raises."""

import contextlib
from types import SimpleNamespace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from uhr.models.attention import flex
from uhr.models.vae import attention as vae_attention

CUDA = torch.device("cuda", 0)


class WithoutValues(FakeTensorMode):
    """Fake tensors; every condition on their values is true, every number is 1."""

    def dispatch(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            return torch.ones((), dtype=args[0].dtype).item()
        if func is torch.ops.aten.equal.default:
            return True
        return super().dispatch(func, types, args, kwargs)


def kernel(query, key, value, mask):
    """In place of FlexAttention's."""
    assert {x.device for x in (query, key, value, mask.kv_indices)} == {CUDA}
    assert {x.dtype for x in (query, key, value)} == {torch.bfloat16}
    assert mask.seq_lengths == (query.shape[2], key.shape[2])
    return torch.empty_like(query)


@contextlib.contextmanager
def pretended(monkeypatch):
    """Fake tensors for the length of a block; what they cannot pass is replaced by what checks its
    arguments."""
    card = SimpleNamespace(total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(flex, "_kernel", kernel)
    monkeypatch.setattr(vae_attention, "_fused", lambda *_: None)
    with WithoutValues(), torch.no_grad():
        yield


def to_cuda(module):
    """Weights without values on "cuda" in bfloat16."""
    for part in module.modules():
        for kept in (part._parameters, part._buffers):
            for name, x in kept.items():
                if x is not None:
                    dtype = torch.bfloat16 if x.is_floating_point() else x.dtype
                    moved = torch.empty(x.shape, dtype=dtype, device=CUDA)
                    kept[name] = torch.nn.Parameter(moved, False) if kept is part._parameters else moved
    return module


def with_values(function):
    """The function as it is elsewhere: plans are made of values, and are no business of a device."""

    def call(*arguments, **named):
        with unset_fake_temporarily():
            return function(*arguments, **named)

    return call
