from types import SimpleNamespace

import pytest
import torch

from uhr.base.errors import UserError
from uhr.models import surgery
from uhr.models.attention.call import AttentionCalls
from uhr.models.attention.proportional import Proportional, proportional_scale
from uhr.models.conditions import Condition, Conditions
from uhr.models.hr_toolkit import Native, Toolkit
from uhr.models.rope_surgeries import RopeNtk, RopeYarn

TINY = Native(side=8, text=16)


@pytest.fixture
def pipeline(transformer):
    """All that the toolkit touches of one."""
    return SimpleNamespace(transformer=transformer, _joint_attention_kwargs={"scale": 1.0})


def shown(pipeline, inputs, toolkit, native):
    with toolkit.on(pipeline, inputs["hidden_states"].shape[1], native), torch.no_grad():
        return pipeline.transformer(**inputs, joint_attention_kwargs=pipeline._joint_attention_kwargs)[0]


def test_the_keys_of_flux_are_the_published_4608():
    assert Native(64).keys == 4608
    assert proportional_scale(16896, 128, Native(64).keys) == pytest.approx(0.0949517, abs=1e-7)


def test_at_the_native_size_nothing_changes_bit_for_bit(pipeline, transformer, inputs):
    plain = transformer(**inputs)[0]
    assert torch.equal(shown(pipeline, inputs, Toolkit(), TINY), plain)
    assert Toolkit().surgeries(64, TINY) == []


@pytest.mark.parametrize("part", [{"ntk": 10}, {"proportional": True}])
def test_above_it_each_part_changes_what_the_backbone_says_and_nothing_after(
    pipeline, transformer, inputs, part
):
    plain = transformer(**inputs)[0]
    toolkit = Toolkit(**{"ntk": 1, "proportional": False, **part})
    found = shown(pipeline, inputs, toolkit, Native(side=4, text=16))
    assert not torch.allclose(found, plain, atol=1e-6)
    assert surgery.applied(transformer) == []
    assert pipeline._joint_attention_kwargs == {"scale": 1.0}
    assert torch.equal(transformer(**inputs)[0], plain)


def test_the_parts_that_are_on_are_listed_on_the_model(pipeline, transformer):
    small = Native(side=4, text=16)
    with Toolkit(ntk_floor=True).on(pipeline, 64, small) as surgeries:
        assert surgery.record(transformer) == [s.describe() for s in surgeries]
        assert surgeries == [RopeNtk(factor=10, floor=2), AttentionCalls()]
    assert surgery.record(transformer) == []


def test_off_is_no_part_at_all(transformer, inputs):
    assert Toolkit.off().surgeries(10**6, TINY) == []
    assert Toolkit.off().attention(10**6, TINY) == {}


def test_proportional_attention_counts_from_the_keys_that_the_backbone_was_trained_with():
    assert Toolkit().attention(100, Native(8, 512)) == {"attention": Proportional(576)}


def test_text_is_repeated_once_for_each_whole_native_tile_and_only_if_asked():
    one = Condition(torch.randn(2, 3, 5), None, torch.zeros(3, 3), torch.zeros(1, 3), None)
    said = Conditions(one, one, 2.0)
    assert Toolkit().told(said, (16, 24), TINY) is said
    more = Toolkit(text_duplication=True).told(said, (16, 24), TINY)
    for each in (more.positive, more.negative):
        assert each.text.shape == (2, 3 * 6, 5)
        corners = {tuple(row) for row in each.text_ids.tolist()}
        assert corners == {(0.0, 8.0 * i, 8.0 * j) for i in range(2) for j in range(3)}


def test_positions_that_are_scaled_already_are_refused_and_stay(pipeline, transformer):
    yarn = RopeYarn(window=8)
    with surgery.temporarily(transformer, yarn):
        with (
            pytest.raises(UserError, match="already scaled by 'rope-yarn'"),
            Toolkit().on(pipeline, 256, TINY),
        ):
            pass
        with Toolkit(ntk=1).on(pipeline, 256, TINY):
            assert yarn in surgery.applied(transformer)
        assert surgery.applied(transformer) == [yarn]


def test_attention_calls_that_a_sampler_put_on_serve_and_stay(pipeline, transformer):
    with surgery.temporarily(transformer, AttentionCalls()):
        with Toolkit().on(pipeline, 256, TINY):
            pass
        assert surgery.applied(transformer) == [AttentionCalls()]
