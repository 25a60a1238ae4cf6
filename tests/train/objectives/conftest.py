"""Batches and models of which everything is known."""

from collections.abc import Callable

import pytest
import torch

from uhr.train.objectives.base import Batch, BatchCondition
from uhr.train.objectives.draws import Draws

B, C = 4, 16


class Model:
    """A denoiser of two functions of (noisy, sigma, condition): the trained model's, and the teacher's."""

    def __init__(self, velocity: Callable, teacher: Callable | None = None) -> None:
        self.velocity = velocity
        self._teacher = teacher

    def teacher(self, noisy, sigma, condition):
        assert self._teacher is not None, "this objective has no teacher"
        with torch.no_grad():
            return self._teacher(noisy, sigma, condition)


def batch(data=None, step: int = 0, side: int = 8, dtype=torch.float32, mask=None) -> Batch:
    """Four samples with uniform sigma; texts are numbers per sample, and 0 for the empty prompt."""
    draws = Draws(0, step, range(B))
    if data is None:
        data = torch.randn(B, C, side, side, generator=torch.Generator().manual_seed(0))
    texts, null = {"t5": torch.arange(1.0, B + 1).view(B, 1)}, {"t5": torch.zeros(1, 1)}
    condition = BatchCondition(texts, null, torch.ones(B))
    noise = draws.normal("noise", data.shape[1:]).to(dtype)
    sigma = draws.uniform("sigma").to(dtype)
    return Batch(data.to(dtype), noise, sigma, condition, tuple("abcd"), mask)


@pytest.fixture(name="batch")
def batch_fixture() -> Callable[..., Batch]:
    return batch


@pytest.fixture
def draws() -> Callable[..., Draws]:
    return lambda step=0: Draws(0, step, range(B))


@pytest.fixture
def model() -> type[Model]:
    return Model
