"""Bytes of activations, counted without memory, are those that a pass really takes."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from uhr.models import zoo
from uhr.models.attention.call import AttentionCalls, Windows
from uhr.models.attention.guide import Guide
from uhr.models.attention.layout import WindowLayout
from uhr.models.attention.proportional import Proportional
from uhr.models.attention.window_rules import WindowRules
from uhr.models.estimate.activations import BackboneMemory
from uhr.models.estimate.live_bytes import LiveBytes
from uhr.models.estimate.shapes import empty_component
from uhr.models.families.conditions import Condition
from uhr.models.families.flux1 import Flux1
from uhr.models.families.flux2 import Flux2
from uhr.models.samplers.core.plan import BackboneCalls, WindowedAttention
from uhr.models.surgery.base import temporarily

FAMILIES = {"tiny-flux1": Flux1(), "tiny-flux2": Flux2()}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def transformer(family, tiny_flux, tiny_flux2):
    return zoo.load_transformer({"tiny-flux1": tiny_flux, "tiny-flux2": tiny_flux2}[family])


def condition(backbone, config, rows, columns, text):
    pooled = config.get("pooled_projection_dim")
    return Condition(
        torch.randn(1, text, config.joint_attention_dim),
        None if pooled is None else torch.randn(1, pooled),
        backbone.text_ids(text),
        backbone.image_ids(rows, columns),
        torch.ones(1) if config.guidance_embeds else None,
    )


def run(backbone, transformer, grid, text, attention):
    """One real call, inputs made outside of it."""
    tokens = torch.randn(1, grid[0] * grid[1], transformer.config.in_channels)
    conditioning, level = condition(backbone, transformer.config, *grid, text), torch.ones(1)

    def call():
        with torch.no_grad(), temporarily(transformer, AttentionCalls()):
            backbone.call(transformer, tokens, level, conditioning, {"attention": attention})

    return call


def live_peak(call):
    with LiveBytes() as live:
        call()
    return live.peak


def allocated_peak(call):
    """The allocator's own account: of every kernel, and of what kernels take inside."""
    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=False) as profiler:
        call()
    timeline = [
        event.extra_fields
        for event in profiler.profiler.kineto_results.experimental_event_tree()
        for event in _with_children(event)
        if type(event.extra_fields).__name__ == "_ExtraFields_Allocation"
    ]
    now = peak = 0
    for each in timeline:
        now += each.alloc_size
        peak = max(peak, now)
    return peak


def _with_children(event):
    yield event
    for child in event.children:
        yield from _with_children(child)


@pytest.mark.parametrize(("grid", "text"), [((16, 16), 64), ((8, 40), 512)])
def test_a_dense_pass_takes_what_is_counted(family, transformer, grid, text):
    backbone = FAMILIES[family]
    counted = BackboneMemory(backbone, transformer, torch.float32).peak(
        BackboneCalls(1, grid[0] * grid[1], text)
    )
    call = run(backbone, transformer, grid, text, Proportional())
    # a CPU's attention kernel leaves the softmax's sums besides
    assert counted <= live_peak(call) <= 1.03 * counted
    assert 0.97 * counted <= allocated_peak(call) <= 1.10 * counted


@pytest.mark.parametrize("guide", ["none", "kept", "in every call"])
def test_a_windowed_pass_takes_what_is_counted(family, transformer, guide):
    backbone, layout, text = FAMILIES[family], WindowLayout(32, 32, 4), 64
    calls = BackboneCalls(1, layout.tokens, text, WindowedAttention(layout, WindowRules(), guide))
    memory = BackboneMemory(backbone, transformer, torch.float32)
    latents = torch.randn(1, layout.guide_tokens, transformer.config.in_channels)
    guide_argument = None if guide == "none" else Guide(latents, cached=guide == "kept")
    windows = Windows(layout, WindowRules(), guide_argument, "gathered")
    call = run(backbone, transformer, (32, 32), text, windows)
    counted = memory.peak(calls) + memory.kept(calls)
    assert 0.85 * counted <= live_peak(call) <= 1.1 * counted


def test_patches_that_share_a_batch_take_so_many_times_as_much(family, transformer):
    memory = BackboneMemory(FAMILIES[family], transformer, torch.float32)
    one, four = (memory.peak(BackboneCalls(1, 256, 64, together=count)) for count in (1, 4))
    assert 3.6 * one < four < 4.01 * one


def test_of_published_shapes_memory_grows_with_the_tokens_and_no_faster(family):
    spec = zoo.get({"tiny-flux1": "flux1-dev", "tiny-flux2": "flux2-klein-9b"}[family])
    transformer = empty_component(spec, "transformer")
    memory = BackboneMemory(FAMILIES[family], transformer, torch.bfloat16)
    small, large = (memory.peak(BackboneCalls(1, side * side, 512)) for side in (256, 512))
    assert large / small == pytest.approx((512**2 + 512) / (256**2 + 512), rel=0.01)
    # some twenty numbers a token and channel at once
    width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    assert 15 < small / (2 * width * (256**2 + 512)) < 25
