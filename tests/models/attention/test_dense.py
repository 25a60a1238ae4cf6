"""The dense methods' attention: proportional scale and repeated text."""

import pytest
import torch

from uhr.models.attention.call import AttentionCalls
from uhr.models.attention.proportional import Proportional, duplicate_text, proportional_scale
from uhr.models.ops import latents
from uhr.models.surgery.base import temporarily


@pytest.mark.parametrize(
    ("keys", "scale"),
    [(4608, 0.0883883), (16896, 0.0949517), (37376, 0.098748), (66048, 0.1013826)],
)
def test_the_published_scales(keys, scale):
    assert proportional_scale(keys, 128) == pytest.approx(scale, abs=5e-7)


def test_proportional_attention_is_the_stock_model_with_longer_queries(transformer, inputs):
    keys = inputs["hidden_states"].shape[1] + inputs["encoder_hidden_states"].shape[1]
    kwargs = {"attention": Proportional(trained=20)}
    with torch.no_grad(), temporarily(transformer, AttentionCalls()):
        plain = transformer(**inputs)[0]
        ours = transformer(**inputs, joint_attention_kwargs=kwargs)[0]
        longer = (torch.tensor(keys).log() / torch.tensor(20).log()).sqrt()
        for name, parameter in transformer.named_parameters():
            if name.endswith(("norm_q.weight", "norm_added_q.weight")):
                parameter.mul_(longer)
        expected = transformer(**inputs)[0]
    assert (ours - expected).abs().max() < 1e-5
    assert (ours - plain).abs().max() > 1e-3


def test_at_the_trained_number_of_keys_nothing_changes(transformer, inputs):
    keys = inputs["hidden_states"].shape[1] + inputs["encoder_hidden_states"].shape[1]
    with torch.no_grad(), temporarily(transformer, AttentionCalls()):
        plain = transformer(**inputs)[0]
        same = transformer(**inputs, joint_attention_kwargs={"attention": Proportional(trained=keys)})[0]
    assert (same - plain).abs().max() < 1e-6


def test_text_is_repeated_for_each_native_tile_at_the_tile_s_corner():
    embeds = torch.arange(6.0).view(1, 3, 2)
    text, ids = duplicate_text(embeds, latents.text_ids(3), 128, 200)
    assert text.shape == (1, 3 * 2 * 3, 2)
    assert torch.equal(text.view(6, 3, 2), embeds.expand(6, 3, 2))
    corners = [[0, r, c] for r in (0, 64) for c in (0, 64, 128)]
    assert ids.view(6, 3, 3)[:, 0].tolist() == corners
    assert torch.equal(ids.view(6, 3, 3), ids.view(6, 3, 3)[:, :1].expand(6, 3, 3))
    assert ids.dtype == torch.float32


def test_a_grid_of_one_tile_keeps_its_text_and_flux2_s_own_text_positions_stay():
    embeds, ids = torch.randn(2, 3, 4), torch.tensor([[0.0, 0, 0, k] for k in range(3)])
    text, same = duplicate_text(embeds, ids, 64, 127)
    assert torch.equal(text, embeds)
    assert torch.equal(same, ids)
    _, two = duplicate_text(embeds, ids, 64, 128)
    assert two.tolist() == [[0, 0, c, k] for c in (0, 64) for k in range(3)]
