"""Guidance, sampler and options that adapters name: defaults of a call, which the user's values override."""

import pytest
import torch
from safetensors.torch import save_file

from uhr.base.errors import UserError
from uhr.models.adapters.formats.usage import IntendedSampling, Usage
from uhr.models.generate.adapter_sampling import defaults_of
from uhr.models.generate.request import Adapter
from uhr.models.specs.registry import get

DEV, SCHNELL = get("flux1-dev"), get("flux1-schnell")


@pytest.fixture
def adapter(tmp_path):
    """`adapter(name, guidance=..., ...)`: an adapter whose file says this; nothing without values."""

    def make(name, **values):
        state = {"transformer.x_embedder.lora_A.weight": torch.ones(1, 2)}
        state["transformer.x_embedder.lora_B.weight"] = torch.ones(2, 1)
        usage = Usage().sampled(IntendedSampling(**values))
        save_file(state, tmp_path / f"{name}.safetensors", metadata=usage.metadata() or None)
        return Adapter(name=str(tmp_path / f"{name}.safetensors"))

    return make


def test_one_that_says_nothing_changes_nothing(adapter):
    found = defaults_of([adapter("plain")], "euler", None, [], DEV)
    assert (found.guidance, found.sets, found.notes, found.warnings) == (None, (), (), ())


def test_its_guidance_is_taken_except_by_a_sampler_with_its_own(adapter):
    gca = adapter("gca", guidance=1.0, sampler="patch-cascade")
    plain = defaults_of([gca], "euler", None, [], DEV)
    assert plain.guidance == 1.0
    assert any("was trained for the sampler patch-cascade, and this is euler" in note for note in plain.notes)
    own = defaults_of([gca], "patch-cascade", None, [], DEV)
    assert (own.guidance, own.notes, own.warnings) == (None, (), ())
    assert defaults_of([gca], "patch-cascade", 3.5, [], DEV).warnings == ()
    (warning,) = defaults_of([gca], "euler", 3.5, [], DEV).warnings
    assert "guidance 1, and --guidance is 3.5" in warning
    assert defaults_of([gca], "euler", 1.0, [], DEV).warnings == ()


def test_a_model_without_guidance_gets_none(adapter):
    assert defaults_of([adapter("a", guidance=1.0)], "euler", None, [], SCHNELL).guidance is None


def test_adapters_that_disagree_are_named_and_none_of_them_is_taken(adapter):
    two = [adapter("a", guidance=1.0), adapter("b", guidance=2.0)]
    found = defaults_of(two, "euler", None, [], DEV)
    assert found.guidance is None
    assert "different guidance" in found.warnings[0]
    same = defaults_of([two[0], adapter("c", guidance=1.0)], "euler", None, [], DEV)
    assert (same.guidance, same.warnings) == (1.0, ())


def test_its_options_are_taken_unless_the_user_sets_them(adapter):
    urae = adapter("urae", options={"toolkit.ntk": 10.0})
    assert defaults_of([urae], "euler", None, [], DEV).sets == ("toolkit.ntk=10.0",)
    other = defaults_of([urae], "sdedit", None, [], DEV)
    assert other.sets == ()
    (note,) = other.notes
    assert "was trained for the sampler euler (toolkit.ntk=10.0), and this is sdedit" in note
    assert defaults_of([urae], "euler", None, ["toolkit.ntk=10"], DEV).warnings == ()
    found = defaults_of([urae], "euler", None, ["toolkit.ntk=4"], DEV)
    assert found.sets == ()
    assert "was trained for toolkit.ntk=10.0, and toolkit.ntk=4 is set" in found.warnings[0]
    other = adapter("other", options={"toolkit.ntk": 4.0})
    with pytest.raises(UserError, match="choose one"):
        defaults_of([urae, other], "euler", None, [], DEV)


def test_an_entry_that_is_damaged_is_one_line(adapter, tmp_path):
    state = {"transformer.x_embedder.lora_A.weight": torch.ones(1, 2)}
    save_file(
        state, tmp_path / "x.safetensors", metadata={"uhr_adapter": '{"sampling": {"guidance": "high"}}'}
    )
    with pytest.raises(UserError, match="guidance"):
        defaults_of([Adapter(name=str(tmp_path / "x.safetensors"))], "euler", None, [], DEV)
