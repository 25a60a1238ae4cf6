"""The toolkit of the dense methods: what each part puts on a backbone above its native size."""

from dataclasses import replace

import pytest
import torch

from uhr.base.errors import UserError
from uhr.models.attention.call import AttentionCalls
from uhr.models.attention.proportional import Proportional, proportional_scale
from uhr.models.families.conditions import Condition
from uhr.models.samplers.core.conditioning import Conditions
from uhr.models.samplers.core.plan import SamplingRequest, SamplingStage
from uhr.models.samplers.core.stages import dense_stage
from uhr.models.samplers.core.toolkit import Native, Toolkit
from uhr.models.surgery import base as surgery
from uhr.models.surgery.rope import RopeNtk, RopeYarn

TINY = Native(side=8, text=16)


@pytest.fixture
def engine(stock, transformer, engine_of):
    """An engine on a transformer of the test's own."""
    from uhr.models.samplers.euler import EulerPipeline

    return engine_of(EulerPipeline(**{**stock.components, "transformer": transformer}))


def stage_of(toolkit, tokens, native):
    """A stage of so many tokens, as a plan has it."""
    surgeries, attention = toolkit.surgeries(tokens, native), toolkit.attention(tokens, native)
    return SamplingStage("x", 0, 0, (1.0, 0.0), surgeries=surgeries, attention=attention)


def shown(engine, inputs, toolkit, native):
    """What the transformer gives in such a stage."""
    stage = stage_of(toolkit, inputs["hidden_states"].shape[1], native)
    attention = {} if stage.attention is None else {"attention": stage.attention}
    with engine.network(stage, alone="toolkit.ntk=1"), torch.no_grad():
        return engine.models.transformer(**inputs, joint_attention_kwargs=attention)[0]


def test_the_keys_of_flux_are_the_published_4608():
    assert Native(64).keys == 4608
    assert proportional_scale(16896, 128, Native(64).keys) == pytest.approx(0.0949517, abs=1e-7)


def test_at_the_native_size_nothing_changes_bit_for_bit(engine, transformer, inputs):
    plain = transformer(**inputs)[0]
    assert torch.equal(shown(engine, inputs, Toolkit(), TINY), plain)
    assert Toolkit().surgeries(64, TINY) == ()


@pytest.mark.parametrize("part", [{"ntk": 10}, {"proportional": True}])
def test_above_it_each_part_changes_what_the_backbone_gives_and_nothing_after(
    engine, transformer, inputs, part
):
    plain = transformer(**inputs)[0]
    toolkit = Toolkit(**{"ntk": 1, "proportional": False, **part})
    found = shown(engine, inputs, toolkit, Native(side=4, text=16))
    assert not torch.allclose(found, plain, atol=1e-6)
    assert surgery.applied(transformer) == []
    assert torch.equal(transformer(**inputs)[0], plain)


def test_the_parts_that_are_on_are_listed_on_the_model_and_in_the_record(engine, transformer):
    stage = stage_of(Toolkit(ntk_floor=True), 64, Native(side=4, text=16))
    assert stage.surgeries == (RopeNtk(factor=10, floor=2), AttentionCalls())
    with engine.network(stage, alone="toolkit.ntk=1"):
        assert surgery.record(transformer) == [each.describe() for each in stage.surgeries]
    assert surgery.record(transformer) == []
    assert engine.record.surgeries == [each.describe() for each in stage.surgeries]


def test_off_is_no_part_at_all():
    assert Toolkit.off().surgeries(10**6, TINY) == ()
    assert Toolkit.off().attention(10**6, TINY) is None


def test_proportional_attention_counts_from_the_keys_that_the_backbone_was_trained_with():
    assert Toolkit().attention(100, Native(8, 512)) == Proportional(576)


def test_text_is_repeated_once_for_each_whole_native_tile_and_only_if_it_is_set(stock):
    from uhr.models.samplers.euler import EulerPipeline

    facts = EulerPipeline(**stock.components).facts
    request, size = SamplingRequest(256, 384, 1), (256, 384)
    one = Condition(torch.randn(2, 3, 5), None, torch.zeros(3, 3), torch.zeros(1, 3), None)
    prompts = Conditions(one, one, 2.0)
    kinds = [Toolkit(proportional=False), Toolkit(proportional=False, text_duplication=True)]
    plain, more = (replace(dense_stage(facts, request, size, (1.0, 0.0), kit), branches=2) for kit in kinds)
    assert prompts.of_stage(plain, "none", facts.grid(size)).positive.text is one.text
    assert more.calls[0].text == 6 * plain.calls[0].text
    found = prompts.of_stage(more, "none", facts.grid(size))
    for each in (found.positive, found.negative):
        assert each.text.shape == (2, 3 * 6, 5)
        corners = {tuple(row) for row in each.text_ids.tolist()}
        assert corners == {(0.0, 8.0 * i, 8.0 * j) for i in range(2) for j in range(3)}


def test_positions_that_are_scaled_in_another_way_are_rejected_and_stay(engine, transformer):
    yarn = RopeYarn(window=8)
    with surgery.temporarily(transformer, yarn):
        with (
            pytest.raises(UserError, match=r"already scaled by 'rope-yarn': keep it and set toolkit\.ntk=1"),
            engine.network(stage_of(Toolkit(), 256, TINY), alone="toolkit.ntk=1"),
        ):
            pass
        with engine.network(stage_of(Toolkit(ntk=1), 256, TINY), alone="toolkit.ntk=1"):
            assert yarn in surgery.applied(transformer)
        assert surgery.applied(transformer) == [yarn]


def test_attention_calls_and_positions_that_are_on_already_serve_and_stay(engine, transformer):
    stage = stage_of(Toolkit(), 256, TINY)
    with surgery.temporarily(transformer, *stage.surgeries):
        with engine.network(stage, alone="toolkit.ntk=1"):
            pass
        assert set(surgery.applied(transformer)) == set(stage.surgeries)
