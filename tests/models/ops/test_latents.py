import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from hypothesis import given
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.models import zoo
from uhr.models.ops import latents
from uhr.models.vae import codec

SIDES = st.integers(1, 6).map(lambda n: 2 * n)


@given(SIDES, SIDES, st.integers(1, 3))
def test_unpacking_inverts_packing_on_every_grid(height, width, batch):
    z = torch.randn(batch, 16, height, width)
    assert torch.equal(latents.unpack(latents.pack(z), height, width), z)


def test_a_token_holds_channel_c_of_pixel_dy_dx_at_4c_plus_2dy_plus_dx():
    z = torch.arange(16 * 4 * 6, dtype=torch.float32).reshape(1, 16, 4, 6)
    tokens = latents.pack(z)
    row, column, c, dy, dx = 1, 2, 5, 1, 0
    assert tokens[0, row * 3 + column, c * 4 + dy * 2 + dx] == z[0, c, 2 * row + dy, 2 * column + dx]


def test_packing_and_ids_are_those_of_diffusers():
    z = torch.randn(2, 16, 8, 6)
    assert torch.equal(latents.pack(z), FluxPipeline._pack_latents(z, 2, 16, 8, 6))
    theirs = FluxPipeline._prepare_latent_image_ids(1, 4, 3, "cpu", torch.float32)
    assert torch.equal(latents.image_ids(4, 3), theirs)


def test_odd_latents_cannot_be_packed():
    with pytest.raises(AssertionError, match="odd"):
        latents.pack(torch.zeros(1, 16, 3, 4))


def test_position_ids_are_distinct_at_8k_where_bfloat16_has_collisions():
    ids = latents.image_ids(512, 2)
    assert ids.dtype == torch.float32
    assert len(ids[:, 1].unique()) == 512
    assert len(ids[:, 1].bfloat16().unique()) == 385
    assert len(ids[: 2 * 320, 1].bfloat16().unique()) == 289


@given(st.floats(-3, 3), st.floats(0.05, 4))
def test_normalisation_is_inverted_exactly_enough(shift, scale):
    norm = latents.Normalisation(shift, scale)
    raw = torch.linspace(-9, 9, 50, dtype=torch.float64)
    torch.testing.assert_close(norm.to_raw(norm.to_model(raw)), raw)
    torch.testing.assert_close(norm.to_model(raw)[0].item(), (-9 - shift) * scale)


def test_flux_latents_are_shifted_then_scaled(stock):
    norm = latents.Normalisation.of(stock.vae.config)
    assert (norm.shift, norm.scale) == (0.1159, 0.3611)


def test_a_vae_without_shift_is_an_error_and_not_a_shift_of_zero():
    with pytest.raises(UserError, match="shift_factor=None"):
        latents.Normalisation.of({"scaling_factor": 0.18215})


@pytest.fixture(scope="module")
def rgb():
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def test_encoded_moments_are_raw_float32_on_the_grid_of_factor_8(stock, rgb):
    mean, std = codec.encode_moments(stock.vae, rgb)
    pixels = torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        expected = stock.vae.encode(pixels).latent_dist
    assert mean.shape == std.shape == (2, 16, 8, 12)
    assert mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(mean, expected.mean)
    torch.testing.assert_close(std, expected.std)


def test_a_sample_of_the_moments_has_their_mean_and_spread():
    mean, std = torch.full((1, 1, 200, 200), 3.0), torch.full((1, 1, 200, 200), 0.5)
    drawn = latents.sample_moments(
        mean, std, torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    )
    assert drawn.mean().item() == pytest.approx(3, abs=0.02)
    assert drawn.std().item() == pytest.approx(0.5, abs=0.02)


def test_a_vae_that_overflows_is_an_error_and_no_black_image(stock, rgb, monkeypatch):
    from types import SimpleNamespace

    bad = torch.full((2, 16, 8, 12), float("nan"))
    posterior = SimpleNamespace(latent_dist=SimpleNamespace(mean=bad, std=bad))
    monkeypatch.setattr(stock.vae, "encode", lambda pixels: posterior)
    monkeypatch.setattr(codec, "compute_dtype", lambda vae: torch.float16)
    with pytest.raises(UserError, match=r"overflows in torch.float16: load it in float32"):
        codec.encode_moments(stock.vae, rgb)
    monkeypatch.undo()
    # which is no cure where it is in float32, nor of pixels that are none
    with pytest.raises(UserError, match="values that are not finite"):
        codec.moments(stock.vae, torch.full((1, 3, 64, 64), float("nan")))


def test_decoding_is_that_of_the_stock_pipeline(stock):
    z = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    ours = latents.to_uint8(codec.decode(stock.vae, z))
    with torch.no_grad():
        image = stock.vae.decode(z / 0.3611 + 0.1159, return_dict=False)[0]
    theirs = np.asarray(stock.image_processor.postprocess(image, output_type="pil")[0])
    assert np.array_equal(ours[0].numpy(), theirs)


def test_pixels_survive_uint8_exactly():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(1, 1, 1, 3)
    assert torch.equal(latents.to_uint8(levels.permute(0, 3, 1, 2).float() / 127.5 - 1), levels)


def test_a_spec_counts_the_tokens_of_a_size():
    spec = zoo.get("flux1-dev")
    assert spec.tokens(1024, 1024) == 4096
    assert spec.tokens(4096, 4096) == 65536
    assert spec.grid(2048, 1024) == (128, 64)
