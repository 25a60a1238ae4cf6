"""The processors in real transformers of both families, against the stock models."""

import copy
import sys

import pytest
import torch

from uhr.base.errors import UserError
from uhr.models.attention.call import AttentionCalls, Windows
from uhr.models.attention.guide import Guide
from uhr.models.attention.layout import WindowLayout
from uhr.models.attention.window_rules import WindowRules
from uhr.models.surgery.base import applied, temporarily

LAYOUT = WindowLayout(8, 12, window=4, ratio=2)


def run(model, arguments, attention=None, **changes):
    kwargs = None if attention is None else {"attention": attention}
    return model(**{**arguments, **changes}, joint_attention_kwargs=kwargs)[0]


RULES = [
    WindowRules(),
    WindowRules(neighbourhood="own"),
    WindowRules(neighbourhood="cross"),
    WindowRules(neighbourhood="sliding", reach=3),
]


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: rules.neighbourhood)
def test_windows_are_the_stock_model_under_a_dense_mask_in_raster_order(model, arguments, raster_mask, rules):
    masked = model(**arguments, joint_attention_kwargs={"attention_mask": raster_mask(rules)[None, None]})[0]
    with temporarily(model, AttentionCalls()):
        ours = run(model, arguments, Windows(LAYOUT, rules))
    assert (ours - masked).abs().max() < 1e-12
    assert (masked - run(model, arguments)).abs().max() > 1e-3


def test_windows_that_reach_over_the_whole_grid_are_the_stock_model(model, arguments):
    with temporarily(model, AttentionCalls()):
        ours = run(model, arguments, Windows(LAYOUT, WindowRules(reach=2)))
    assert (ours - run(model, arguments)).abs().max() < 1e-12


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_both_back_ends_give_the_same_model(model, arguments, guide_latents):
    with temporarily(model, AttentionCalls()), torch.no_grad():
        ours = [
            run(model, arguments, Windows(LAYOUT, guide=Guide(guide_latents), backend=name))
            for name in ("gathered", "flex")
        ]
    assert (ours[0] - ours[1]).abs().max() < 1e-12


def test_without_attention_a_call_is_the_stock_one_and_keys_stay(model, arguments):
    stock, keys = run(model, arguments), list(model.state_dict())
    processors = dict(model.attn_processors)
    with temporarily(model, AttentionCalls()):
        assert list(model.state_dict()) == keys
        assert torch.equal(run(model, arguments), stock)
        assert torch.equal(model(**{**arguments, "return_dict": True}).sample, stock)
        again = copy.deepcopy(model)
        run(again, arguments, Windows(LAYOUT))
    assert model.attn_processors == processors
    assert not applied(model)
    assert torch.equal(run(model, arguments), stock)


def test_a_named_output_comes_back_in_raster_order_too(model, arguments):
    with temporarily(model, AttentionCalls()):
        named = model(
            **{**arguments, "return_dict": True}, joint_attention_kwargs={"attention": Windows(LAYOUT)}
        )
        assert torch.equal(named.sample, run(model, arguments, Windows(LAYOUT)))


def test_what_windows_do_not_go_with_is_refused(model, arguments):
    from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor

    with temporarily(model, AttentionCalls()):
        with pytest.raises(UserError, match="ControlNet"):
            run(model, arguments, Windows(LAYOUT), controlnet_block_samples=[arguments["hidden_states"]])
        with pytest.raises(AssertionError, match="tokens are not"):
            run(model, arguments, Windows(WindowLayout(8, 8, 4, 2)))
        with pytest.raises(UserError, match="already on this model"):
            AttentionCalls().apply(model)
    former = dict(model.attn_processors)
    foreign = FluxIPAdapterAttnProcessor(hidden_size=8, cross_attention_dim=8)
    model.set_attn_processor(foreign)
    with pytest.raises(UserError, match="FluxIPAdapterAttnProcessor"):
        AttentionCalls().apply(model)
    model.set_attn_processor(former)


class Parallel:
    """The attributes of diffusers' ParallelConfig that a processor reads."""

    context_parallel_config = "two ranks"


def test_parallel_and_backend_settings_pass_through_our_processors(model, arguments, monkeypatch):
    seen = []
    module = sys.modules[type(model).__module__]
    stock = module.dispatch_attention_fn

    def spy(*args, backend=None, parallel_config=None, **kwargs):
        seen.append((backend, parallel_config))
        return stock(*args, **kwargs)

    monkeypatch.setattr(module, "dispatch_attention_fn", spy)
    plain, setting = run(model, arguments), Parallel()
    with temporarily(model, AttentionCalls()):
        for processor in model.attn_processors.values():
            # what `enable_parallelism` and `set_attention_backend` do
            processor._parallel_config, processor._attention_backend = setting, "native"
        seen.clear()
        assert torch.equal(run(model, arguments), plain)
        assert seen == [("native", setting)] * len(model.attn_processors)
        with pytest.raises(UserError, match="context parallelism"):
            run(model, arguments, Windows(LAYOUT))
    for processor in model.attn_processors.values():
        assert (processor._attention_backend, processor._parallel_config) == ("native", setting)
        processor._attention_backend = processor._parallel_config = None


def test_a_stock_pipeline_samples_in_windows(stock):
    def sample(**more):
        return stock(
            "a lighthouse",
            height=128,
            width=192,
            num_inference_steps=2,
            max_sequence_length=16,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
            **more,
        ).images

    dense = sample()
    layout = WindowLayout.of_pixels(128, 192, token=16, window=4)
    with temporarily(stock.transformer, AttentionCalls()):
        whole = sample(joint_attention_kwargs={"attention": Windows(layout, WindowRules(reach=2))})
        windows = sample(
            joint_attention_kwargs={"attention": Windows(layout, WindowRules(neighbourhood="own"))}
        )
    assert (whole - dense).abs().max() < 1e-4
    assert (windows - dense).abs().max() > 1e-3


def test_fused_projections_are_read_as_fused(model, arguments):
    plain = copy.deepcopy(model)
    with temporarily(plain, AttentionCalls()):
        expected = run(plain, arguments, Windows(LAYOUT))
        plain.fuse_qkv_projections()
        assert (run(plain, arguments, Windows(LAYOUT)) - expected).abs().max() < 1e-12
