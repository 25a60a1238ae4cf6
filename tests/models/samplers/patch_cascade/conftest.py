"""RealUHR's patch cascade on the tiny FLUX.1, and what goes in."""

import pytest
import torch

from uhr.models.ops.filters import bicubic

# four patches of 128 px
CALL = {
    "height": 192,
    "width": 192,
    "num_inference_steps": 2,
    "guidance_scale": 3.5,
    "max_sequence_length": 16,
    "base_steps": 2,
}


@pytest.fixture(scope="session")
def image(seeded):
    """A maker of smooth images [1, 3, H, W] in [0, 1]."""

    def make(height=128, width=128, seed=2):
        coarse = torch.rand(1, 3, height // 8 + 2, width // 8 + 2, generator=seeded(seed))
        return bicubic(coarse, height, width).clamp(0, 1)

    return make


@pytest.fixture
def sample(cascade, seeded):
    """A short call, seed 0; keywords change it. With an image no size is passed."""

    def call(prompt="a red house", pipeline=cascade, **more):
        arguments = {**CALL, "generator": seeded(), **more}
        if "image" in more and "height" not in more:
            arguments.pop("height"), arguments.pop("width")
        return pipeline(prompt, **arguments)

    return call


@pytest.fixture
def backbone_calls(cascade, monkeypatch):
    """The arguments of the transformer, call by call."""
    seen = []
    forward = cascade.transformer.forward
    monkeypatch.setattr(
        cascade.transformer, "forward", lambda **kwargs: seen.append(kwargs) or forward(**kwargs)
    )
    return seen
