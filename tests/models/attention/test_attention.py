"""Both back ends against dense attention under a mask that is written down token by token."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.models.attention import flex, gathered
from uhr.models.attention.layout import WindowLayout
from uhr.models.attention.mask import dense_mask
from uhr.models.attention.window_rules import WindowRules

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

NEIGHBOURHOODS = ("own", "cross", "box", "sliding")


def near(neighbourhood: str, reach: int, side: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether the tokens at b lie in the neighbourhood of those at a: (row, column) last, windows of
    `side`."""
    if neighbourhood == "sliding":
        return (np.abs(a - b) <= reach).all(-1)
    apart = np.abs(a // side - b // side)
    return {
        "own": (apart == 0).all(-1),
        "cross": (apart == 0).any(-1) & (apart <= reach).all(-1),
        "box": (apart <= reach).all(-1),
    }[neighbourhood]


def grid(height: int, width: int) -> np.ndarray:
    return np.stack(np.divmod(np.arange(height * width), width), axis=-1)


@functools.cache
def oracle(layout: WindowLayout, rules: WindowRules, text: int, guide: bool) -> torch.Tensor:
    """The table of rules by coordinates, in raster order: bool [S, S] over [T | X | Y]."""
    x = grid(layout.height, layout.width)
    y = grid(layout.height // layout.ratio, layout.width // layout.ratio)
    reach = {"own": 0, "cross": 1, "box": 1, "sliding": 8}[rules.neighbourhood]
    reach = rules.reach if rules.reach is not None else reach
    side, guide_side = layout.window, layout.window // layout.ratio
    block = max(
        b
        for b in range(guide_side, side + 1, guide_side)
        if not (y.max(0) + 1)[0] % b and not (y.max(0) + 1)[1] % b
    )

    def all_or_none(rows: int, columns: int, yes: bool) -> np.ndarray:
        return np.full((rows, columns), yes)

    image = near(rules.neighbourhood, reach, side, x[:, None], x[None])
    same_area = (x[:, None] // side == y[None] // guide_side).all(-1)
    seen = all_or_none(len(x), len(y), True) if rules.image_to_guide == "all" else same_area
    full = rules.guide_to_guide == "full" or (rules.guide_to_guide == "auto" and len(y) <= 16384)
    among = np.full((len(y), len(y)), full) | near("box", rules.guide_reach, block, y[:, None], y[None])
    table = [
        [
            all_or_none(text, text, True),
            all_or_none(text, len(x), True),
            all_or_none(text, len(y), False),
        ],
        [all_or_none(len(x), text, True), image, seen],
        [all_or_none(len(y), text, rules.guide_to_text), all_or_none(len(y), len(x), False), among],
    ]
    end = None if guide else text + len(x)
    return torch.from_numpy(np.block(table)[:end, :end])


class Case:
    """Random tensors in raster order, ours on them, and the dense answer."""

    def __init__(self, layout, rules, text, guide=True, batch=1, dtype=torch.float64, heads=2, head_dim=8):
        draw = torch.Generator().manual_seed(0)
        self.layout, self.rules, self.text, self.guide = layout, rules, text, guide
        length = text + layout.tokens + guide * layout.guide_tokens
        shape = (3, batch, length, heads, head_dim)
        self.qkv = torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()

    def streams(self):
        """Joint query, key, value and the guide's, in window-first order."""
        text, layout = self.text, self.layout
        end = text + layout.tokens
        image = layout.to_windows(self.qkv[:, :, text:end], dim=2)
        joint = torch.cat([self.qkv[:, :, :text], image], dim=2)
        guide = layout.guide_to_windows(self.qkv[:, :, end:], dim=2) if self.guide else None
        return joint, guide

    def raster(self, out):
        return torch.cat([out[:, : self.text], self.layout.to_raster(out[:, self.text :])], dim=1)

    def gathered(self, buffer=None):
        joint, guide = self.streams()
        keys = None if guide is None else (guide[1], guide[2])
        return self.raster(gathered.attend(*joint, keys, self.layout, self.rules, buffer))

    def gathered_guide(self):
        joint, guide = self.streams()
        text = (joint[1][:, : self.text], joint[2][:, : self.text])
        out = gathered.attend_guide(guide[0], (guide[1], guide[2]), text, self.layout, self.rules)
        return self.layout.guide_to_raster(out)

    @torch.no_grad()
    def flex(self):
        joint, guide = self.streams()
        keys = None if guide is None else (guide[1], guide[2])
        mask = flex.BlockMasks().get(self.layout, self.rules, self.text, self.guide, torch.device("cpu"))
        return self.raster(flex.attend(*joint, keys, mask))

    def dense(self):
        query, key, value = (x.transpose(1, 2) for x in self.qkv)
        mask = oracle(self.layout, self.rules, self.text, self.guide)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)

    @property
    def end(self):
        return self.text + self.layout.tokens


@st.composite
def cases(draw) -> Case:
    ratio = draw(st.sampled_from([1, 2]))
    window = draw(st.sampled_from([2, 4]))
    height, width = window * draw(st.integers(1, 4)), window * draw(st.integers(1, 4))
    neighbourhood = draw(st.sampled_from(NEIGHBOURHOODS))
    reach = None if neighbourhood == "own" else draw(st.sampled_from([None, 1, 2, 3, 5]))
    rules = WindowRules(
        neighbourhood=neighbourhood,
        reach=reach,
        image_to_guide=draw(st.sampled_from(["own", "all"])),
        guide_to_text=draw(st.booleans()),
        guide_to_guide=draw(st.sampled_from(["auto", "full", "local"])),
        guide_reach=draw(st.integers(0, 2)),
    )
    layout = WindowLayout(height, width, window, ratio)
    return Case(layout, rules, text=draw(st.integers(0, 3)), guide=draw(st.booleans()), batch=2)


@given(cases(), st.sampled_from([1, 5_000, None]))
def test_gathered_windows_are_dense_attention_under_the_mask(case, buffer):
    dense = case.dense()
    assert (case.gathered(buffer) - dense[:, : case.end]).abs().max() < 1e-12
    if case.guide:
        assert (case.gathered_guide() - dense[:, case.end :]).abs().max() < 1e-12


@settings(max_examples=25)
@given(cases())
def test_gradients_are_those_of_dense_attention_under_the_mask(case):
    upstream = torch.randn(
        case.qkv.shape[1:], generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    outs = [case.gathered(buffer=5_000)] + ([case.gathered_guide()] if case.guide else [])
    (ours,) = torch.autograd.grad((torch.cat(outs, dim=1) * upstream).sum(), case.qkv)
    (dense,) = torch.autograd.grad((case.dense() * upstream).sum(), case.qkv)
    assert (ours - dense).abs().max() < 1e-12


@pytest.mark.parametrize("guide_to_text", [True, False])
@pytest.mark.parametrize("neighbourhood", ["box", "cross"])
def test_in_float64_nothing_but_the_last_digit_differs_from_dense(neighbourhood, guide_to_text):
    rules = WindowRules(neighbourhood=neighbourhood, guide_to_text=guide_to_text)
    case = Case(WindowLayout(16, 24, window=4), rules, text=6)
    dense = case.dense()
    assert (case.gathered() - dense[:, : case.end]).abs().max() < 1e-15
    assert (case.gathered_guide() - dense[:, case.end :]).abs().max() < 1e-15


@pytest.mark.parametrize("guide", [True, False])
@pytest.mark.parametrize("neighbourhood", NEIGHBOURHOODS)
def test_float32_agrees_with_dense_to_1e_6_at_the_paper_s_window(neighbourhood, guide):
    layout, rules = WindowLayout(32, 48), WindowRules(neighbourhood=neighbourhood)
    case = Case(layout, rules, text=40, guide=guide, dtype=torch.float32, heads=1, head_dim=32)
    with torch.no_grad():
        dense = case.dense()[:, : case.end]
        assert (case.gathered() - dense).abs().max() < 1e-6
        assert (case.flex() - dense).abs().max() < 1e-6


@pytest.mark.parametrize("text", [0, 24, 256])
@pytest.mark.parametrize("options", [{"image_to_guide": "all"}, {"neighbourhood": "cross", "reach": 2}])
def test_both_back_ends_agree_on_grids_that_are_no_whole_tiles(options, text):
    case = Case(WindowLayout(24, 16, 8), WindowRules(**options), text, dtype=torch.float32, head_dim=16)
    assert (case.gathered() - case.flex()).abs().max() < 2e-6  # float32: some 16 roundings


@pytest.mark.parametrize("rules", [WindowRules(neighbourhood="own"), WindowRules(reach=3), WindowRules()])
def test_a_window_as_large_as_the_grid_is_full_attention(rules):
    case = Case(WindowLayout(16, 16), rules, text=9, guide=False)
    query, key, value = (x.transpose(1, 2) for x in case.qkv)
    full = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    assert (case.gathered() - full).abs().max() < 1e-12


@pytest.mark.parametrize("neighbourhood", ["own", "cross", "box"])
def test_what_is_outside_a_neighbourhood_never_reaches_a_window(neighbourhood):
    # NaN in one window's keys and values: whoever touches them, masked or not, shows it
    layout, rules = WindowLayout(20, 24, 4, 2), WindowRules(neighbourhood=neighbourhood)
    for poisoned in (0, 7, layout.rows * layout.columns - 1):
        draw = torch.Generator().manual_seed(0)
        query, key, value = torch.randn(3, 1, layout.tokens, 1, 8, generator=draw)
        run = slice(poisoned * 16, poisoned * 16 + 16)
        key[:, run] = value[:, run] = torch.nan
        out = gathered.attend(query, key, value, None, layout, rules)
        reached = out.isnan().flatten(2).any(-1).view(layout.rows, layout.columns, 16).any(-1)
        row, column = divmod(poisoned, layout.columns)
        for r in range(layout.rows):
            for c in range(layout.columns):
                sees = near(neighbourhood, 1, 1, np.array([r, c]), np.array([row, column]))
                assert bool(reached[r, c]) == sees


def test_no_window_needs_a_mask_so_that_the_flash_kernel_stays(monkeypatch):
    seen = []
    stock = F.scaled_dot_product_attention

    def spy(*args, attn_mask=None, **kwargs):
        seen.append((args[0].shape[-2], args[1].shape[-2], attn_mask))
        return stock(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    case = Case(WindowLayout(16, 16, 4, 2), WindowRules(), text=5)
    case.gathered()
    assert all(mask is None for _, _, mask in seen)
    windows = {keys for queries, keys, _ in seen if queries == 16}
    # 4, 6 or 9 neighbours of 16 tokens, 5 text tokens, 4 guide tokens: nothing padded
    assert windows == {4 * 16 + 9, 6 * 16 + 9, 9 * 16 + 9}


@pytest.mark.parametrize("side", [64, 128])
def test_gathered_keys_never_exceed_their_buffer(side, monkeypatch):
    largest = []
    stock = F.scaled_dot_product_attention

    def spy(query, key, value, **kwargs):
        if query.shape[-2] == 256:
            largest.append(2 * key.shape[0] * key.shape[1] * key.shape[2] * key.shape[3] * key.element_size())
        return stock(query, key, value, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    x = torch.zeros(1, side**2, 1, 8)
    gathered.attend(x, x, x, None, WindowLayout(side, side), WindowRules(), buffer=400_000)
    assert len(largest) > side // 16
    assert max(largest) <= 400_000


def test_half_precision_gradients_are_summed_in_float32():
    layout, rules = WindowLayout(32, 32, 4, 2), WindowRules()
    exact = Case(layout, rules, text=2, dtype=torch.float32)
    half = Case(layout, rules, text=2, dtype=torch.bfloat16)
    grads = []
    for case in (exact, half):
        out = case.gathered(buffer=100_000)
        grads.append(torch.autograd.grad(out.sum(), case.qkv)[0].float())
    # every window adds to the text's value gradient: 64 bfloat16 additions would lose it
    of_text = [grad[2, :, :2] for grad in grads]
    assert (of_text[1] / of_text[0] - 1).abs().max() < 0.02


@pytest.mark.parametrize("neighbourhood", NEIGHBOURHOODS)
def test_the_predicate_says_the_same_as_the_table(neighbourhood):
    layout = WindowLayout(8, 12, 4, 2)
    for options in ({}, {"guide_to_text": False}, {"image_to_guide": "all"}, {"guide_to_guide": "local"}):
        reach = 3 if neighbourhood == "sliding" else None
        rules = WindowRules(neighbourhood=neighbourhood, reach=reach, guide_reach=1, **options)
        raster = torch.cat(
            [
                torch.arange(3),
                3 + layout.to_windows(torch.arange(layout.tokens), dim=0),
                3 + layout.tokens + layout.guide_to_windows(torch.arange(layout.guide_tokens), dim=0),
            ]
        )
        table = oracle(layout, rules, 3, True)[raster][:, raster]
        assert torch.equal(dense_mask(layout, rules, 3, guide=True), table)


def test_the_guide_is_global_up_to_8k_and_local_above():
    rules = WindowRules()
    assert not rules.guide_is_local(WindowLayout(512, 512))
    assert rules.guide_is_local(WindowLayout(512, 1024))
    assert not WindowRules(guide_to_guide="full").guide_is_local(WindowLayout(512, 1024))


def test_flex_on_a_cpu_refuses_gradients():
    joint, _ = Case(WindowLayout(8, 8, 4, 2), WindowRules(), 0, guide=False).streams()
    with pytest.raises(UserError, match="gathered"):
        flex.attend(*joint, None, mask=None)


def test_the_mask_of_a_compiled_kernel_traces_without_a_break():
    # CUDA's kernel is generated from the same trace; here it runs uncompiled after it
    from torch.nn.attention.flex_attention import flex_attention

    case = Case(WindowLayout(16, 24, 8, 4), WindowRules(), text=16, dtype=torch.float32, head_dim=16)
    case.qkv.requires_grad_(False)
    joint, guide = case.streams()
    mask = flex.BlockMasks().get(case.layout, case.rules, case.text, True, torch.device("cpu"))
    traced = torch.compile(flex_attention, backend="aot_eager", dynamic=False, fullgraph=True)
    keys = [torch.cat([joint[i], guide[i]], dim=1).transpose(1, 2) for i in (1, 2)]
    with torch.no_grad():
        out = traced(joint[0].transpose(1, 2), *keys, block_mask=mask).transpose(1, 2)
    assert (case.raster(out) - case.gathered()).abs().max() < 1e-6
