"""Exact tiling: bands give what the whole image gives."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from uhr.base.errors import UserError
from uhr.models.specs.registry import get
from uhr.models.surgery.base import compose, from_record, record, temporarily
from uhr.models.vae import codec
from uhr.models.vae.attention import in_blocks, scaled_dot_product
from uhr.models.vae.bands import Moments
from uhr.models.vae.f16 import F16
from uhr.models.vae.tiled import ExactTiling, reporting

EXACT = 2e-5
"""The bound of the claim, float32, on images in about [-1, 1]."""


def make_vae(**changes):
    """A small VAE of the real class with everything that FLUX's has, and the quant convolutions it lacks."""
    from diffusers import AutoencoderKL

    options = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (8, 16, 16, 24),
        "layers_per_block": 2,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": 64,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKL(**options | changes).eval()
    with torch.no_grad():
        # images of a nominal range, and norms that do something
        vae.decoder.conv_out.weight *= 0.3
        for module in vae.modules():
            if isinstance(module, nn.GroupNorm):
                module.weight += torch.linspace(-0.3, 0.3, len(module.weight))
                module.bias += torch.linspace(0.2, -0.2, len(module.bias))
    return vae.requires_grad_(False)


@pytest.fixture(scope="module")
def vaes():
    """F8 and F16, with and without quant convolutions."""
    f8, f16 = make_vae(), make_vae(use_quant_conv=False, use_post_quant_conv=False)
    F16().apply(f16)
    return f8, f16


@pytest.fixture
def vae():
    return make_vae()


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run(vae, part: str, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return vae.decode(x).sample if part == "decode" else vae.encode(x).latent_dist.parameters


def tightest(vae, part: str, height: int, width: int, samples: int = 1, **options) -> ExactTiling:
    """The least memory that will do: bands of few rows, many passes."""
    try:
        ExactTiling(memory=1, **options).plan(vae, part, height, width, samples)
    except UserError as error:
        (least,) = str(error).split("at least ")[1].split(",")[:1]
        return ExactTiling(memory=least.replace(" ", ""), **options)
    raise AssertionError("one byte was enough")


@settings(max_examples=20)
@given(
    st.booleans(), st.sampled_from(["encode", "decode"]), st.integers(1, 12), st.integers(1, 12),
    st.integers(0, 15), st.integers(0, 15), st.sampled_from([1.0, 1.1, 1.5, 3.0]), st.integers(0, 99),
)  # fmt: skip
def test_any_size_in_any_memory_equals_the_whole(
    vaes, f16, part, rows, columns, more_rows, more_columns, device_budget, seed
):
    vae = vaes[f16]
    if part == "decode":
        x = draw(1, 4, rows, columns, seed=seed)
    else:
        x = draw(1, 3, 16 * rows + more_rows, 16 * columns + more_columns, seed=seed).clamp(-1, 1)
    expected = run(vae, part, x)
    least = tightest(vae, part, *x.shape[2:])
    tiling = ExactTiling(memory=int(least.memory * device_budget))
    with temporarily(vae, tiling):
        found = run(vae, part, x)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < EXACT


@pytest.mark.parametrize("part", ["encode", "decode"])
@pytest.mark.parametrize("f16", [False, True])
def test_in_double_precision_nothing_is_left_of_the_difference(vaes, part, f16):
    vae = copy.deepcopy(vaes[f16]).double()
    x = draw(1, 4, 13, 9).double() if part == "decode" else draw(1, 3, 101, 83).double()
    expected = run(vae, part, x)
    with temporarily(vae, tightest(vae, part, *x.shape[2:])):
        found = run(vae, part, x)
    assert (found - expected).abs().max() < 1e-12


@pytest.mark.parametrize("part", ["encode", "decode"])
def test_samples_of_a_batch_do_not_meet(vaes, part):
    x = draw(3, 4, 9, 6) if part == "decode" else draw(3, 3, 70, 50)
    tiling = tightest(vaes[0], part, *x.shape[2:], samples=3)
    with temporarily(vaes[0], tiling):
        together = run(vaes[0], part, x)
        alone = [run(vaes[0], part, one) for one in x.split(1)]
    assert (together - torch.cat(alone)).abs().max() < EXACT


def test_a_bfloat16_vae_decoded_in_float32_is_the_float32_vae_of_the_same_weights(vae):
    vae.to(torch.bfloat16)
    z = draw(1, 4, 9, 11).to(torch.bfloat16)
    expected = run(copy.deepcopy(vae).float(), "decode", z.float())
    with temporarily(vae, tightest(vae, "decode", 9, 11, dtype="float32")):
        found = run(vae, "decode", z)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < EXACT
    assert vae.dtype == torch.bfloat16
    # what that is for: in bfloat16 the image is off by more than a level of eight bits
    assert (run(vae, "decode", z).float() - expected).abs().max() > 2 / 255


def test_images_and_latents_reach_a_float32_pass_unrounded(tiny_flux):
    from uhr.models.zoo import load_vae

    half, single = load_vae(tiny_flux, dtype="bfloat16"), load_vae(tiny_flux)
    single.load_state_dict(half.state_dict())
    ExactTiling(dtype="float32").apply(half)
    z, rgb = draw(1, 16, 8, 8), torch.randint(0, 256, (1, 64, 48, 3), dtype=torch.uint8)
    assert (codec.decode(half, z) - codec.decode(single, z)).abs().max() < EXACT
    for found, expected in zip(
        codec.encode_moments(half, rgb), codec.encode_moments(single, rgb), strict=True
    ):
        assert (found - expected).abs().max() < 1e-4


def test_flux2s_vae_is_built_of_the_same_parts():
    from diffusers import AutoencoderKLFlux2

    vae = AutoencoderKLFlux2(block_out_channels=(8, 8, 16, 16), norm_num_groups=4, sample_size=64).eval()
    for part, x in (("decode", draw(1, 32, 7, 5)), ("encode", draw(1, 3, 50, 61))):
        expected = run(vae, part, x)
        with temporarily(vae, tightest(vae, part, *x.shape[2:])):
            assert (run(vae, part, x) - expected).abs().max() < EXACT


def test_in_bfloat16_bands_are_no_further_from_the_truth_than_the_whole(vae):
    z = draw(1, 4, 9, 11).to(torch.bfloat16)
    truth = run(vae.to(torch.bfloat16).double(), "decode", z.double())
    vae.to(torch.bfloat16)
    whole = run(vae, "decode", z)
    with temporarily(vae, tightest(vae, "decode", 9, 11)):
        bands = run(vae, "decode", z)
    assert bands.dtype == torch.bfloat16
    assert (bands - truth).abs().mean() < 1.5 * (whole - truth).abs().mean()


def test_where_activations_are_held_changes_the_memory_and_not_the_image(vae):
    z = draw(1, 4, 12, 8)
    found = []
    for hold in ("device", "cpu"):
        with temporarily(vae, ExactTiling(memory="1MiB", hold=hold)):
            found.append(run(vae, "decode", z))
    assert (found[0] - found[1]).abs().max() < EXACT
    # nothing that is held counts: 8K decodes with the memory of a 4K band
    assert tightest(vae, "decode", 64, 64, hold="cpu").memory < tightest(vae, "decode", 64, 64).memory / 2


@pytest.mark.parametrize("bands", [True, False])
def test_a_reconstruction_reports_how_much_of_it_is_done(tiny_flux, bands):
    from uhr.models.zoo import load_vae

    vae = load_vae(tiny_flux)
    memory = max(tightest(vae, "encode", 96, 80).memory, tightest(vae, "decode", 12, 10).memory)
    image = np.random.default_rng(0).integers(0, 256, (96, 80, 3), dtype=np.uint8)
    shares = []
    with temporarily(vae, ExactTiling(memory=memory if bands else 2**30)):
        reported = codec.reconstruct(vae, image, shares.append)
        silent = codec.reconstruct(vae, image)
    assert (reported == silent).all()
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert 1 / 3 in [pytest.approx(share) for share in shares]
    # bands, or both halves alone
    assert len(shares) > 8 if bands else len(shares) == 2


def test_of_a_batch_the_share_of_the_whole_call_is_reported(tiny_flux):
    from uhr.models.zoo import load_vae

    vae, shares = load_vae(tiny_flux), []
    with (
        temporarily(vae, ExactTiling(memory=tightest(vae, "decode", 12, 10).memory * 3)),
        reporting(shares.append),
    ):
        run(vae, "decode", draw(3, 16, 12, 10))
    assert shares == sorted(shares)
    assert {1 / 3, 2 / 3, 1.0} <= set(shares)


def test_revert_gives_back_the_very_methods_and_bits(vae):
    z, names = draw(1, 4, 7, 9), sorted(vars(vae))
    before = run(vae, "decode", z)
    tiling = ExactTiling(memory="600KiB")
    tiling.apply(vae)
    twin = copy.deepcopy(vae)
    assert not torch.equal(run(vae, "decode", z), before)
    tiling.revert(vae)
    assert torch.equal(run(vae, "decode", z), before)
    assert sorted(vars(vae)) == names
    # a copy runs on its own weights, not on those of the model it was copied from
    twin.decoder.conv_out.bias.data += 1
    assert (run(twin, "decode", z) - before - 1).abs().max() < EXACT


def test_it_composes_with_f16_in_either_order_and_comes_back_from_a_card(vae):
    z = draw(1, 4, 5, 6)
    found = []
    for order in ([F16(), ExactTiling(memory="900KiB")], [ExactTiling(memory="900KiB"), F16()]):
        model = copy.deepcopy(vae)
        compose(model, order)
        again = copy.deepcopy(vae)
        compose(again, from_record(record(model)))
        found += [run(model, "decode", z), run(again, "decode", z)]
    assert all(torch.equal(found[0], other) for other in found[1:])
    assert record(model)[0] == {"surgery": "exact-tiling", "memory": 921600, "dtype": None, "hold": "device"}


def test_an_image_that_fits_is_run_whole_bit_for_bit(vae):
    x = draw(2, 3, 64, 48)
    expected = run(vae, "encode", x)
    with temporarily(vae, ExactTiling()):
        assert torch.equal(run(vae, "encode", x), expected)


def test_diffusers_own_tiling_makes_another_image(vae):
    """The peer: the same weights, tiles of 64 px with a quarter of overlap, statistics of their own."""
    z = draw(1, 4, 24, 24)
    expected = run(vae, "decode", z)
    vae.enable_tiling()
    theirs = (run(vae, "decode", z) - expected).abs().max()
    with temporarily(vae, tightest(vae, "decode", 24, 24)):
        ours = (run(vae, "decode", z) - expected).abs().max()
    assert theirs > 0.05
    assert ours < EXACT


@settings(max_examples=20)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 40), st.integers(1, 2))
def test_attention_in_blocks_is_attention(queries, keys, block, heads):
    query, key, value = draw(1, heads, queries, 8), 3 * draw(1, heads, keys, 8), draw(1, heads, keys, 8)
    scores = query.double() @ key.double().transpose(-1, -2) / 8**0.5
    expected = scores.softmax(-1) @ value.double()
    assert (in_blocks(query, key, value, (block, block + 1)) - expected).abs().max() < 1e-5
    assert (scaled_dot_product(query, key, value) - expected).abs().max() < 1e-5


@settings(max_examples=20)
@given(st.lists(st.integers(0, 5), min_size=1).filter(any), st.floats(-100, 100), st.floats(0.01, 10))
def test_moments_of_bands_are_those_of_the_whole(bands, mean, spread):
    whole = draw(1, 8, sum(bands), 7) * spread + mean
    moments = Moments(nn.GroupNorm(2, 8))
    for band in whole.split(bands, dim=2):
        moments.write(band)
    groups = whole.double().reshape(2, -1)
    found = moments.finish()
    torch.testing.assert_close(found[0], groups.mean(1), atol=1e-5 * (abs(mean) + spread), rtol=0)
    torch.testing.assert_close(
        found[1], groups.var(1, correction=0), rtol=1e-3 + 1e-6 * (mean / spread) ** 2, atol=0
    )


def test_what_cannot_be_streamed_exactly_is_refused_before_anything_changes(vae):
    class Adapted(nn.Conv2d):
        pass

    names = sorted(vars(vae))
    good = vae.encoder.conv_in
    vae.encoder.conv_in = Adapted(3, 8, 3, padding=1)
    with pytest.raises(UserError, match="Adapted in place of Conv2d: merge the adapter"):
        ExactTiling().apply(vae)
    vae.encoder.conv_in = good.to("meta")
    with pytest.raises(UserError, match="meta device"):
        ExactTiling().apply(vae)
    with pytest.raises(UserError, match="Linear is not a VAE"):
        ExactTiling().apply(nn.Linear(2, 2))
    assert sorted(vars(vae)) == names


def test_an_input_that_requires_a_gradient_is_rejected(vae):
    with temporarily(vae, ExactTiling()), pytest.raises(UserError, match="no gradient"):
        vae.decode(draw(1, 4, 4, 4).requires_grad_(True))


def test_no_untiled_run_has_a_tensor_that_32_bits_cannot_index():
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL(**get("flux1-dev").configs["vae"])
    endless = ExactTiling(memory="1TiB")
    # 256 channels of 2048 x 2048 px are 2^30 values, of 4096 x 4096 px 2^32
    for latents, tiled in ((256, False), (512, True)):
        plan = endless.plan(vae, "decode", latents, latents)
        assert (endless.peak_and_flops(vae, "decode", latents, latents) == (plan.peak, plan.flops)) == tiled
