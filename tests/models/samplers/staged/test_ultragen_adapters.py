"""Adapters under ultragen: its own are kept to guide tokens, all others act on every token."""

import copy

import pytest
import torch

from uhr.base.errors import UserError
from uhr.models.adapters import peft_layers
from uhr.models.adapters.formats.published import BLOCK, ULTRAGEN
from uhr.models.adapters.guide_only import guide_only, is_published
from uhr.models.adapters.low_rank import LowRank
from uhr.models.adapters.masked import TokenMask, mask_adapter
from uhr.models.samplers.ultragen import UltraGenPipeline
from uhr.models.surgery import base as surgery
from uhr.models.surgery.rope import RopeNtk

SHORT = {"num_inference_steps": 4, "base_steps": 2, "skip": 2, "output_type": "latent"}


@pytest.fixture
def ultragen(made):
    return made(UltraGenPipeline)


def put(transformer, paths, name):
    """A LoRA that has something to say on these linears."""
    draw, modules = torch.Generator().manual_seed(3), dict(transformer.named_modules())
    parts = {}
    for path in paths:
        rows, columns = modules[path].weight.shape
        a, b = torch.randn(2, columns, generator=draw), torch.randn(rows, 2, generator=draw)
        parts[path] = LowRank(a, 0.3 * b, 2.0)
    peft_layers.put(transformer, parts, name, "here")


@pytest.fixture
def own(ultragen):
    """The pipeline on a transformer of the test's own."""
    own = UltraGenPipeline(**{**ultragen.components, "transformer": copy.deepcopy(ultragen.transformer)})
    own.set_progress_bar_config(disable=True)
    return own


def published_paths(transformer):
    linears = (name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear))
    return [name for name in linears if BLOCK.sub(r"\g<kind>.", name) in ULTRAGEN["flux1"]]


def test_ultragens_lora_acts_on_the_guide_alone_and_is_an_ordinary_one_afterwards(own, call, seeded):
    def sample(**more):
        return own("x", **{**call, **SHORT}, **more, generator=seeded(), return_stages=True)

    plain, unguided = sample(), sample(guide=False).images
    put(own.transformer, published_paths(own.transformer), "bridge")
    assert is_published(own.transformer, "bridge")
    adapted = sample()
    assert (own.last_run.settings.guide_adapters, own.last_run.notes) == (("bridge",), [])
    assert torch.equal(adapted.stages[0], plain.stages[0])
    assert not torch.allclose(adapted.images, plain.images, atol=1e-3)
    assert torch.equal(sample(guide=False).images, unguided)
    layers = [m for m in own.transformer.modules() if hasattr(m, "lora_variant")]
    assert layers
    assert not any("bridge" in layer.lora_variant for layer in layers)
    everywhere = sample(guide_adapters=())
    assert not torch.allclose(everywhere.stages[0], plain.stages[0], atol=1e-3)


def test_a_style_lora_acts_on_every_token_unless_it_is_named(own, call, seeded):
    def sample(**more):
        return own("x", **{**call, **SHORT}, **more, generator=seeded(), return_stages=True)

    plain = sample()
    put(own.transformer, ["transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_v"], "style")
    styled, kept = sample(), sample(guide_adapters=("style",))
    assert not torch.allclose(styled.stages[0], plain.stages[0], atol=1e-4)
    assert torch.equal(kept.stages[0], plain.stages[0])
    with pytest.raises(UserError, match="stile"):
        sample(guide_adapters=("stile",))


def test_a_masked_adapter_stays_masked_and_gets_its_tokens_again(own, call, seeded):
    put(own.transformer, ["transformer_blocks.0.attn.to_k"], "bridge")
    mask = TokenMask()
    mask_adapter(own.transformer, "bridge", mask)
    own("x", **{**call, **SHORT}, generator=seeded())
    assert own.last_run.settings.guide_adapters == ("bridge",)
    assert mask.chosen is None
    with guide_only(own.transformer, None) as kept:
        assert kept == ["bridge"]
        assert mask.chosen is not None


def test_positions_that_something_else_has_scaled_are_rejected(own, call, seeded):
    with (
        surgery.temporarily(own.transformer, RopeNtk(factor=5)),
        pytest.raises(UserError, match="already scaled by 'rope-ntk'"),
    ):
        own("x", **{**call, **SHORT}, generator=seeded())


def test_the_published_lora_is_known_by_flux1_devs_linears(flux_dev):
    """19 double blocks of 6 linears, 38 single ones of 6, and the embedder."""
    assert len(published_paths(flux_dev)) == 19 * 6 + 38 * 6 + 1
