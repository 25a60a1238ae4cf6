import copy
import math

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxPosEmbed
from diffusers.models.transformers.transformer_flux2 import Flux2PosEmbed
from hypothesis import given
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.models.ops import latents, rope

THETA, AXES, WINDOW = 10000.0, (16, 56, 56), 64
EVERY = [
    rope.PosEmbed(THETA, AXES),
    rope.NtkPosEmbed(THETA, AXES),
    rope.YarnPosEmbed(THETA, AXES, WINDOW),
    rope.ResonancePosEmbed(THETA, AXES, WINDOW),
]
WINDOWED = EVERY[2:]
BY_NAME = {"argvalues": EVERY, "ids": lambda e: type(e).__name__}


def scale(value):
    return torch.tensor(float(value), dtype=torch.float64)


def ids(rows, columns, text=3):
    return torch.cat([latents.text_ids(text), latents.image_ids(rows, columns)])


def multipliers(function, s):
    return function(56, THETA, WINDOW, scale(s)) / rope.plain(56, THETA)


# Resonance with YaRN, against the values of UltraFlux's code


@pytest.mark.parametrize(
    ("s", "first"),
    [
        (2.0, [0.9817, 0.9494, 0.9273, 1.009, 1.0179, 0.8957, 0.5895, 0.6550]),
        (1.5, [0.9817, 0.9517, 0.9356, 1.0271, 1.0502, 0.9441, 0.6355, 0.7688]),
    ],
)
def test_resonance_multiplies_the_first_bands_as_known_and_interpolates_the_others(s, first):
    found = multipliers(rope.resonance_yarn, s)
    torch.testing.assert_close(found[:8], torch.tensor(first, dtype=torch.float64), atol=5e-5, rtol=0)
    torch.testing.assert_close(found[8:], torch.full((20,), 1 / s, dtype=torch.float64))


def test_eight_bands_have_a_cycle_and_become_whole_cycles_per_window():
    cycles = WINDOW * rope.plain(56, THETA) / (2 * math.pi)
    known = [10.186, 7.331, 5.276, 3.797, 2.733, 1.967, 1.415, 1.019, 0.733, 0.528, 0.380]
    torch.testing.assert_close(cycles[:11], torch.tensor(known, dtype=torch.float64), atol=6e-4, rtol=0)
    resonant = WINDOW * THETA ** -rope.resonant_exponents(56, THETA, WINDOW) / (2 * math.pi)
    torch.testing.assert_close(resonant[:8], torch.tensor([10, 7, 5, 4, 3, 2, 1, 1], dtype=torch.float64))
    torch.testing.assert_close(resonant[8:], cycles[8:])


def test_ramps_are_where_the_code_puts_them():
    assert rope.band_of(1.25, 56, THETA, WINDOW) == pytest.approx(6.378, abs=5e-4)
    assert rope.band_of(0.75, 56, THETA, WINDOW) == pytest.approx(7.931, abs=5e-4)
    slow = rope.correction_ramp(1.25, 0.75, 56, THETA, WINDOW, top=28)
    assert slow.tolist() == [0] * 7 + [0.5] + [1] * 20
    fast = rope.correction_ramp(16, 2, 56, THETA, WINDOW, top=28)
    torch.testing.assert_close(fast[:6], torch.tensor([0, 0.2, 0.4, 0.6, 0.8, 1], dtype=torch.float64))


def test_magnitude_at_twice_the_window_is_known_and_is_squared_in_the_logits():
    assert rope.magnitude(scale(2)).item() == pytest.approx(1.069315, abs=5e-7)
    assert rope.magnitude(scale(2)).item() ** 2 == pytest.approx(1.1434, abs=5e-5)
    assert rope.magnitude(scale(1)).item() == 1


# YaRN, against the reference implementation that transformers carries


@pytest.mark.parametrize(
    ("dim", "window", "s"), [(56, 64, 2.0), (56, 64, 3.1), (64, 2048, 4.0), (14, 8, 4.0)]
)
def test_yarn_is_the_reference(dim, window, s):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {
        "rope_type": "yarn", "rope_theta": THETA, "factor": s, "original_max_position_embeddings": window,
        "beta_fast": 32, "beta_slow": 1,
    }  # fmt: skip
    config = LlamaConfig(
        hidden_size=dim, num_attention_heads=1, head_dim=dim, rope_parameters=parameters,
        max_position_embeddings=int(window * s),
    )  # fmt: skip
    frequencies, factor = ROPE_INIT_FUNCTIONS["yarn"](config, device="cpu")
    ours = rope.yarn(dim, THETA, window, scale(s))
    torch.testing.assert_close(ours.float(), frequencies, rtol=1e-5, atol=0)
    assert rope.magnitude(scale(s)).item() == pytest.approx(factor)


@given(st.floats(1.01, 8))
def test_yarn_never_speeds_a_band_up_nor_slows_it_beyond_interpolation(s):
    found = multipliers(rope.yarn, s)
    assert bool((found <= 1 + 1e-12).all())
    assert bool((found >= 1 / s - 1e-12).all())


# NTK and plain, against diffusers' own embedding


@pytest.mark.parametrize("grid", [(4, 4), (70, 3), (512, 2)])
def test_plain_and_ntk_are_diffusers_embedding_bitwise(grid):
    for ours, theirs in (
        (rope.PosEmbed(THETA, AXES), FluxPosEmbed(THETA, AXES)),
        (rope.NtkPosEmbed(THETA, AXES, factor=10), FluxPosEmbed(THETA * 10, AXES)),
        (rope.NtkPosEmbed(THETA, AXES, factor=1), FluxPosEmbed(THETA, AXES)),
    ):
        for found, expected in zip(ours(ids(*grid)), theirs(ids(*grid)), strict=True):
            assert torch.equal(found, expected)


def test_plain_is_flux2s_embedding_bitwise_on_its_four_axes():
    axes = (32, 32, 32, 32)
    draw = torch.Generator().manual_seed(0)
    positions = torch.randint(0, 300, (20, 4), generator=draw).float()
    for found, expected in zip(
        rope.PosEmbed(2000, axes)(positions), Flux2PosEmbed(2000, axes)(positions), strict=True
    ):
        assert torch.equal(found, expected)


def test_imax_floor_keeps_low_bands_from_falling_below_interpolation():
    length = scale(256)
    free, _ = rope.NtkPosEmbed(THETA, AXES).bands(1, length)
    floored, _ = rope.NtkPosEmbed(THETA, AXES, floor=2.0).bands(1, length)
    lowest = rope.plain(56, THETA) / 2
    assert bool((floored >= lowest).all())
    assert torch.equal(floored[free > lowest], free[free > lowest])
    assert bool((floored > free).any())


# what all of them share


@pytest.mark.parametrize("embed", WINDOWED, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("grid", [(64, 64), (1, 64), (10, 7)])
def test_within_the_window_nothing_changes_bitwise(embed, grid):
    for found, expected in zip(embed(ids(*grid)), FluxPosEmbed(THETA, AXES)(ids(*grid)), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("embed", WINDOWED, ids=lambda e: type(e).__name__)
def test_each_axis_is_scaled_by_its_own_length(embed):
    positions = ids(128, 32)
    cos, sin = embed(positions)
    plain_cos, plain_sin = FluxPosEmbed(THETA, AXES)(positions)
    time, rows, columns = slice(0, 16), slice(16, 72), slice(72, 128)
    for here, there in ((cos, plain_cos), (sin, plain_sin)):
        assert torch.equal(here[:, time], there[:, time])
        assert torch.equal(here[:, columns], there[:, columns])
        assert not torch.allclose(here[:, rows], there[:, rows])
    # text is at position 0 and is scaled as well: its cosine there is the magnitude
    torch.testing.assert_close(cos[0, rows], torch.full((56,), 1.0693147))
    assert not sin[0].any()


@pytest.mark.parametrize("embed", **BY_NAME)
def test_every_pair_of_channels_is_one_rotation_times_the_magnitude(embed):
    cos, sin = embed(ids(100, 3))
    assert torch.equal(cos[:, 0::2], cos[:, 1::2])
    assert torch.equal(sin[:, 0::2], sin[:, 1::2])
    size = torch.sqrt(cos**2 + sin**2)
    expected = torch.ones(128)
    if embed in WINDOWED:
        expected[16:72] = 1 + 0.1 * math.log(100 / 64)
    torch.testing.assert_close(size, expected.expand_as(size))


@pytest.mark.parametrize("embed", **BY_NAME)
def test_there_is_no_state_that_half_precision_could_damage(embed):
    assert not list(embed.parameters())
    assert not list(embed.buffers())
    positions = ids(200, 2)
    halved = copy.deepcopy(embed).to(torch.bfloat16)
    for found, expected in zip(halved(positions), embed(positions), strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)


@pytest.mark.parametrize("embed", **BY_NAME)
def test_half_precision_ids_are_rejected(embed):
    with pytest.raises(UserError, match="neighbours would share a position"):
        embed(ids(4, 4).bfloat16())


def test_angles_are_float64_at_positions_where_float32_would_be_off():
    position = 1_000_003
    cos, _ = rope.PosEmbed(THETA, AXES)(torch.tensor([[0, position, 0]]))
    angles = np.longdouble(position) / np.longdouble(THETA) ** (np.arange(0, 56, 2, dtype=np.longdouble) / 56)
    exact = np.cos(angles).astype(np.float64)
    assert np.abs(cos[0, 16:72:2].double().numpy() - exact).max() < 1e-6


@pytest.mark.parametrize("embed", **BY_NAME)
def test_positions_at_8k_are_all_distinct(embed):
    cos, sin = embed(ids(512, 1, text=0))
    rows = torch.cat([cos, sin], dim=1)
    assert len(torch.unique(rows, dim=0)) == 512


@pytest.mark.parametrize("embed", **BY_NAME)
def test_no_value_is_read_back_from_the_device_so_that_it_compiles_into_one_graph(embed):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        cos, sin = embed(torch.empty(300, 3))
    assert cos.shape == sin.shape == (300, 128)


@pytest.mark.parametrize("kind", [rope.NtkPosEmbed, rope.YarnPosEmbed, rope.ResonancePosEmbed])
def test_dropped_into_a_backbone_it_changes_images_beyond_the_window(transformer, inputs, kind):
    theta, axes = transformer.pos_embed.theta, transformer.pos_embed.axes_dim
    small, large = dict(inputs), dict(inputs)
    draw = torch.Generator().manual_seed(0)
    large |= {
        "hidden_states": torch.randn(2, 12 * 12, 64, generator=draw),
        "img_ids": latents.image_ids(12, 12),
    }
    with torch.no_grad():
        before = [transformer(**call)[0] for call in (small, large)]
        transformer.pos_embed = kind(theta, axes) if kind is rope.NtkPosEmbed else kind(theta, axes, window=8)
        after = [transformer(**call)[0] for call in (small, large)]
    if kind is not rope.NtkPosEmbed:
        assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1], atol=1e-4)
