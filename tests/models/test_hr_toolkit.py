import pytest
import torch

from uhr.base.errors import UserError
from uhr.models import surgery
from uhr.models.attention.call import AttentionCalls
from uhr.models.attention.proportional import Proportional, proportional_scale
from uhr.models.hr_toolkit import Native, Toolkit
from uhr.models.rope_surgeries import RopeNtk, RopeYarn

TINY = Native(side=8, text=16)


def shown(model, inputs, toolkit, native):
    tokens = inputs["hidden_states"].shape[1]
    with toolkit.on(model, tokens, native), torch.no_grad():
        attention = toolkit.attention(tokens, native)
        return model(**inputs, joint_attention_kwargs=attention)[0]


def test_the_keys_of_flux_are_the_published_4608():
    assert Native(64).keys == 4608
    assert proportional_scale(16896, 128, Native(64).keys) == pytest.approx(0.0949517, abs=1e-7)


def test_at_the_native_size_nothing_changes_bit_for_bit(transformer, inputs):
    plain = transformer(**inputs)[0]
    assert torch.equal(shown(transformer, inputs, Toolkit(), TINY), plain)
    assert Toolkit().surgeries(64, TINY) == []


@pytest.mark.parametrize("part", [{"ntk": 10}, {"proportional": True}])
def test_above_it_each_part_changes_what_the_backbone_says_and_nothing_after(transformer, inputs, part):
    plain = transformer(**inputs)[0]
    toolkit = Toolkit(**{"ntk": 1, "proportional": False, **part})
    found = shown(transformer, inputs, toolkit, Native(side=4, text=16))
    assert not torch.allclose(found, plain, atol=1e-6)
    assert surgery.applied(transformer) == []
    assert torch.equal(transformer(**inputs)[0], plain)


def test_the_parts_that_are_on_are_listed_on_the_model(transformer):
    small = Native(side=4, text=16)
    with Toolkit(ntk_floor=True).on(transformer, 64, small) as surgeries:
        assert surgery.record(transformer) == [s.describe() for s in surgeries]
        assert surgeries == [RopeNtk(factor=10, floor=2), AttentionCalls()]
    assert surgery.record(transformer) == []


def test_off_is_no_part_at_all(transformer, inputs):
    assert Toolkit.off().surgeries(10**6, TINY) == []
    assert Toolkit.off().attention(10**6, TINY) == {}


def test_proportional_attention_counts_from_the_keys_that_the_backbone_was_trained_with():
    assert Toolkit().attention(100, Native(8, 512)) == {"attention": Proportional(576)}


def test_text_is_repeated_once_for_each_whole_native_tile_and_only_if_asked():
    embeds, ids = torch.randn(2, 3, 5), torch.zeros(3, 3)
    same = Toolkit().texts(embeds, ids, 16, 16, TINY)
    assert same == (embeds, ids)
    more, where = Toolkit(text_duplication=True).texts(embeds, ids, 16, 24, TINY)
    assert more.shape == (2, 3 * 6, 5)
    assert {tuple(row) for row in where.tolist()} == {
        (0.0, 8.0 * i, 8.0 * j) for i in range(2) for j in range(3)
    }


def test_positions_that_are_scaled_already_are_refused_and_stay(transformer):
    yarn = RopeYarn(window=8)
    with surgery.temporarily(transformer, yarn):
        with (
            pytest.raises(UserError, match="already scaled by 'rope-yarn'"),
            Toolkit().on(transformer, 256, TINY),
        ):
            pass
        with Toolkit(ntk=1).on(transformer, 256, TINY):
            assert yarn in surgery.applied(transformer)
        assert surgery.applied(transformer) == [yarn]


def test_attention_calls_that_a_sampler_put_on_serve_and_stay(transformer):
    with surgery.temporarily(transformer, AttentionCalls()):
        with Toolkit().on(transformer, 256, TINY):
            pass
        assert surgery.applied(transformer) == [AttentionCalls()]
