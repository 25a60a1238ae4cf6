import pytest
import torch

from uhr.base.errors import UserError
from uhr.models.ops import rope
from uhr.models.surgery import base as surgery
from uhr.models.surgery.rope import RopeNtk, RopeResonance, RopeYarn

KINDS = [
    (RopeNtk(), rope.NtkPosEmbed),
    (RopeYarn(window=8), rope.YarnPosEmbed),
    (RopeResonance(window=8), rope.ResonancePosEmbed),
]


@pytest.mark.parametrize(("cut", "embedding"), KINDS)
def test_it_replaces_the_embedding_lists_itself_and_puts_the_former_back(transformer, inputs, cut, embedding):
    former = transformer.pos_embed
    with torch.no_grad():
        before = transformer(**inputs)[0]
        cut.apply(transformer)
        assert type(transformer.pos_embed) is embedding
        assert transformer.pos_embed.axes_dim == tuple(former.axes_dim)
        assert transformer.pos_embed.theta == former.theta
        assert [entry["surgery"] for entry in surgery.record(transformer)] == [cut.name]
        cut.revert(transformer)
        assert transformer.pos_embed is former
        assert torch.equal(transformer(**inputs)[0], before)


@pytest.mark.parametrize(("cut", "embedding"), KINDS)
def test_a_record_makes_the_same_surgery_again(cut, embedding):
    assert surgery.from_record([cut.describe()]) == [cut]


def test_two_embeddings_exclude_each_other(transformer):
    RopeNtk().apply(transformer)
    with pytest.raises(UserError, match=r"both replace transformer\.pos_embed"):
        RopeYarn(window=8).apply(transformer)


def test_a_model_without_rotary_axes_is_refused_and_left_alone(stock):
    with pytest.raises(UserError, match="AutoencoderKL has no rotary position embedding"):
        RopeNtk().apply(stock.vae)
    assert surgery.applied(stock.vae) == []


def test_the_state_dict_has_the_published_keys_under_every_embedding(transformer):
    keys = set(transformer.state_dict())
    for cut, _ in KINDS:
        with surgery.temporarily(transformer, cut):
            assert set(transformer.state_dict()) == keys
