"""Small transformers of both families in float64, arguments for a call, and the rules as a dense mask."""

import pytest
import torch

from uhr.models.attention.layout import WindowLayout
from uhr.models.attention.mask import dense_mask
from uhr.models.ops import latents

TEXT = 7
LAYOUT = WindowLayout(8, 12, window=4, ratio=2)
SIZES = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "guidance_embeds": True,
}


def flux1():
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(pooled_projection_dim=12, axes_dims_rope=(4, 14, 14), **SIZES)


def flux2():
    from diffusers import Flux2Transformer2DModel

    return Flux2Transformer2DModel(axes_dims_rope=(8, 8, 8, 8), **SIZES)


@pytest.fixture(scope="module", params=[flux1, flux2], ids=["flux1", "flux2"])
def model(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return request.param().double().requires_grad_(False)


@pytest.fixture(scope="module")
def arguments(model):
    draw = torch.Generator().manual_seed(1)
    image, text = latents.image_ids(8, 12), latents.text_ids(TEXT)
    more = {"pooled_projections": torch.randn(2, 12, generator=draw, dtype=torch.float64)}
    if type(model).__name__.startswith("Flux2"):
        image, text = torch.nn.functional.pad(image, (0, 1)), torch.nn.functional.pad(text, (0, 1))
        text[:, 3] = torch.arange(TEXT)
        more = {}
    return {
        "hidden_states": torch.randn(2, LAYOUT.tokens, 16, generator=draw, dtype=torch.float64),
        "encoder_hidden_states": torch.randn(2, TEXT, 24, generator=draw, dtype=torch.float64),
        "timestep": torch.tensor([0.7, 0.3], dtype=torch.float64),
        "guidance": torch.tensor([3.5, 1.0], dtype=torch.float64),
        "img_ids": image,
        "txt_ids": text,
        "return_dict": False,
        **more,
    }


@pytest.fixture(scope="module")
def guide_latents():
    draw = torch.Generator().manual_seed(2)
    return torch.randn(2, LAYOUT.guide_tokens, 16, generator=draw, dtype=torch.float64)


@pytest.fixture(scope="session")
def raster_mask():
    """(rules, guide) -> the mask over [T | X | Y] in raster order."""

    def make(rules, guide=False):
        order = [
            torch.arange(TEXT),
            TEXT + LAYOUT.to_windows(torch.arange(LAYOUT.tokens), dim=0),
            TEXT + LAYOUT.tokens + LAYOUT.guide_to_windows(torch.arange(LAYOUT.guide_tokens), dim=0),
        ]
        place = torch.cat(order if guide else order[:2]).argsort()
        return dense_mask(LAYOUT, rules, TEXT, guide)[place][:, place]

    return make
