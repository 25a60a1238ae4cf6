"""Exact tiling needs no more memory than it plans, and 8K fits a card of 24 GB."""

import pytest
import torch
from diffusers import AutoencoderKL

from uhr.base.errors import UserError
from uhr.models.estimate.live_bytes import LiveBytes
from uhr.models.surgery.base import temporarily
from uhr.models.vae import program
from uhr.models.vae.tiled import ExactTiling

GIB = 2**30


def flux_vae(**changes) -> AutoencoderKL:
    options = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "latent_channels": 16,
        "norm_num_groups": 32,
        "sample_size": 1024,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    return AutoencoderKL(**options | changes).eval().requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", ["encode", "decode"])
@pytest.mark.parametrize("factor", [1.1, 2.0])
def test_no_more_bytes_are_alive_than_the_plan_says_and_the_user_gave(dtype, part, factor):
    vae = flux_vae(block_out_channels=(8, 16, 32, 32), norm_num_groups=4).to(dtype)
    x = torch.randn((1, 16, 8, 6) if part == "decode" else (1, 3, 64, 48)).to(dtype)
    tiling = ExactTiling(memory=int(least_memory(vae, part, *x.shape[2:]) * factor))
    plan = tiling.plan(vae, part, *x.shape[2:])
    with torch.no_grad(), temporarily(vae, tiling), LiveBytes() as live:
        getattr(vae, part)(x)
    alive = live.peak + x.nbytes
    assert alive <= plan.peak <= tiling.memory
    # a bound that says little would be met by anything; what kernels copy inside is not seen here
    assert alive > 0.4 * plan.peak


def least_memory(vae, part: str, height: int, width: int) -> int:
    with pytest.raises(UserError) as caught:
        ExactTiling(memory=1).plan(vae, part, height, width)
    size = str(caught.value).split("at least ")[1].split(",")[0]
    return int(ExactTiling(memory=size.replace(" ", "")).memory)


def test_the_least_memory_that_the_error_names_is_enough_and_not_much_more():
    vae = flux_vae(block_out_channels=(8, 16, 32, 32), norm_num_groups=4)
    least = least_memory(vae, "decode", 64, 48)
    assert ExactTiling(memory=least).plan(vae, "decode", 64, 48).peak <= least
    with pytest.raises(UserError, match=r"of a 48x64 input in .* is not possible"):
        ExactTiling(memory=int(least * 0.9)).plan(vae, "decode", 64, 48)


def test_less_memory_is_paid_for_with_work_and_never_the_other_way_round():
    vae = flux_vae(block_out_channels=(8, 16, 32, 32), norm_num_groups=4)
    least = least_memory(vae, "decode", 64, 48)
    plans = [ExactTiling(memory=int(least * f)).plan(vae, "decode", 64, 48) for f in (1, 1.2, 1.5, 2, 4, 8)]
    flops = [plan.flops for plan in plans]
    assert flops == sorted(flops, reverse=True)
    assert flops[0] > flops[-1]


@pytest.mark.parametrize(
    ("part", "side", "dtype", "memory", "work"),
    [
        ("decode", 4096, "float32", "10GiB", 1.4),
        ("decode", 4096, "bfloat16", "6GiB", 1.4),
        ("encode", 4096, "float32", "4GiB", 1.4),
        ("decode", 8192, "float32", "20GiB", 1.6),
        ("decode", 8192, "bfloat16", "10GiB", 1.6),
        ("encode", 8192, "float32", "10GiB", 1.2),
    ],
)
def test_the_real_widths_fit_at_4k_and_8k_for_a_known_price(monkeypatch, part, side, dtype, memory, work):
    """On paper, with the accounting that the test above holds against live tensors."""
    monkeypatch.setattr(program, "_plain", lambda module, cls: None)
    with torch.device("meta"):
        vae = flux_vae().to(getattr(torch, dtype))
    size = side // 8 if part == "decode" else side
    plan = ExactTiling(memory=memory).plan(vae, part, size, size)
    assert plan.peak <= ExactTiling(memory=memory).memory
    assert plan.describe()["work"] <= work
