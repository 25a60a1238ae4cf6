"""The staged samplers on the tiny model, and quick calls of them."""

import pytest


@pytest.fixture(scope="session")
def call():
    """Arguments that suit every staged sampler: 256 px, twice the tiny model's native size."""
    return {
        "height": 256,
        "width": 256,
        "num_inference_steps": 3,
        "guidance_scale": 3.5,
        "max_sequence_length": 16,
    }


@pytest.fixture(scope="session")
def seeded():
    """A generator of its own for each seed."""
    import torch

    return lambda seed=0: torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def made(tiny_flux):
    """A maker of one pipeline for each class; all share the tiny model's components."""
    found = {}

    def make(cls):
        if cls not in found:
            first = next(iter(found.values()), None)
            if first is None:
                found[cls] = cls.from_pretrained(tiny_flux, local_files_only=True)
            else:
                found[cls] = cls(**first.components)
            found[cls].set_progress_bar_config(disable=True)
        return found[cls]

    return make


@pytest.fixture
def straight(monkeypatch):
    """Gives a pipeline the straight field to one value per channel of z, at any size; a maker of the tokens
    that it leads to, by their number."""
    import torch

    def lead(pipeline):
        value = torch.randn(16, generator=torch.Generator().manual_seed(5)).repeat_interleave(4)

        def velocity(tokens, sigma, *_, **__):
            pipeline.model_calls += 1
            return (tokens - value) / sigma

        monkeypatch.setattr(pipeline, "velocity", velocity)
        return lambda count: value.expand(1, count, 64)

    return lead
