"""One loaded tiny model for the whole room."""

import pytest


@pytest.fixture(scope="session")
def stock(tiny_flux):
    """diffusers' own FluxPipeline on the tiny checkpoint. Shared: a test leaves it as it found it."""
    from diffusers import FluxPipeline

    pipeline = FluxPipeline.from_pretrained(tiny_flux, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def transformer(tiny_flux):
    """A tiny transformer of the test's own."""
    from uhr.models.zoo import load_transformer

    return load_transformer(tiny_flux)


@pytest.fixture(scope="session")
def inputs(stock):
    """Arguments of one call of the tiny transformer: 64 image tokens, 16 text tokens, two samples."""
    import torch

    from uhr.models import latents

    draw = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(2, 64, 64, generator=draw),
        "encoder_hidden_states": torch.randn(2, 16, 32, generator=draw),
        "pooled_projections": torch.randn(2, 32, generator=draw),
        "timestep": torch.tensor([0.9, 0.3]),
        "guidance": torch.tensor([1.0, 1.0]),
        "img_ids": latents.image_ids(8, 8),
        "txt_ids": latents.text_ids(16),
        "return_dict": False,
    }
