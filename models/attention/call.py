"""Replace a transformer's attention: install the processors once, then pass `attention` to each call.

    with temporarily(transformer, AttentionCalls()):                       # models/surgery/base.py
        windows = Windows(WindowLayout.of_pixels(4096, 4096, token=16), guide=Guide(guide_latents))
        velocity = transformer(hidden_states=..., img_ids=..., ...,        # all in raster order, as ever
                               joint_attention_kwargs={"attention": windows})

Nothing else changes: tokens and ids go in and come out in raster order, the state dict is the same, and a
call without `attention` is the stock one, bit for bit. A pipeline that forwards `joint_attention_kwargs`
needs no change. Blocks may be compiled (`compile_repeated_blocks`), with `fullgraph` only for FlexAttention
without a guide.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch

from uhr.base.errors import UserError
from uhr.models.adapters.masked import masks
from uhr.models.attention import flex, gathered
from uhr.models.attention.guide import Guide, GuideRun
from uhr.models.attention.layout import WindowLayout
from uhr.models.attention.processors import Attend, Rotary
from uhr.models.attention.window_rules import WindowRules
from uhr.models.surgery.base import Surgery

Inputs = dict[str, Any]
"""A transformer call's arguments by name."""


class Attention(ABC):
    """The value that a caller passes as `attention`; many calls may share it."""

    @abstractmethod
    def begin(self, transformer: Any, inputs: Inputs) -> tuple[Inputs, AttentionCall]:
        """Return the arguments for the stock forward, and the object that the processors call."""


class AttentionCall(Attend):
    """The attention of one transformer call.

    Subclasses are no dataclasses: FSDP, which looks for tensors in the inputs of a block, makes copies of
    dataclasses, and what one block stores would be lost to the next.
    """

    def end(self, sample: torch.Tensor) -> torch.Tensor:
        """Return the transformer's output [B, N, C] in the caller's order of tokens."""
        return sample


@dataclass
class Windows(Attention):
    """UltraGen's hierarchical local attention over a grid of image tokens, with or without a guide.

    `backend` "auto" is "flex" on CUDA and "gathered" elsewhere; the two agree to rounding. `masks` caches
    flex's block masks: share one among all that attend over the same grids. Use one `Windows` per prompt: a
    cached guide belongs to one text.
    """

    layout: WindowLayout
    rules: WindowRules = field(default_factory=WindowRules)
    guide: Guide | None = None
    backend: Literal["auto", "gathered", "flex"] = "auto"
    masks: flex.BlockMasks = field(default_factory=flex.BlockMasks)

    def begin(self, transformer: Any, inputs: Inputs) -> tuple[Inputs, AttentionCall]:
        image = inputs["hidden_states"]
        assert image.shape[1] == self.layout.tokens, f"{image.shape[1]} tokens are not {self.layout}"
        for name in ("controlnet_block_samples", "controlnet_single_block_samples"):
            if inputs.get(name) is not None:
                raise UserError("windowed attention takes no ControlNet", "leave one of them out")
        _refuse_context_parallelism(transformer)
        for mask in masks(transformer):
            mask.choose()  # no image or text token; the guide's pass chooses its own
        run = None
        if self.guide is not None:
            run = self.guide.begin(transformer, inputs, self.layout, self.rules)
        ordered = {
            **inputs,
            "hidden_states": self.layout.to_windows(image),
            "img_ids": self.layout.to_windows(inputs["img_ids"], dim=-2),
        }
        text, mask = inputs["encoder_hidden_states"].shape[1], None
        if self.backend == "flex" or (self.backend == "auto" and image.device.type == "cuda"):
            mask = self.masks.get(self.layout, self.rules, text, run is not None, image.device)
        return ordered, _WindowsCall(self.layout, self.rules, text, run, mask)


class _WindowsCall(AttentionCall):
    """text: number of text tokens. mask: FlexAttention's block mask; None for the gathered back end."""

    def __init__(
        self, layout: WindowLayout, rules: WindowRules, text: int, guide: GuideRun | None, mask: Any
    ) -> None:
        self.layout, self.rules, self.text, self.guide, self.mask = layout, rules, text, guide, mask

    def attend(
        self, layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rotary: Rotary
    ) -> torch.Tensor:
        guide = None
        if self.guide is not None:
            text = (key[:, : self.text], value[:, : self.text])
            guide = self.guide.keys_values(layer, text, rotary)
        if self.mask is not None:
            return flex.attend(query, key, value, guide, self.mask)
        return gathered.attend(query, key, value, guide, self.layout, self.rules)

    def end(self, sample: torch.Tensor) -> torch.Tensor:
        return self.layout.to_raster(sample)


class AttentionCalls(Surgery):
    """Let every attention layer of a FLUX.1 or FLUX.2 transformer use the call's `attention`."""

    name: ClassVar[str] = "attention-calls"
    edits: ClassVar[frozenset[str]] = frozenset({"transformer.attn_processors"})

    def perform(self, model: Any) -> Any:
        former = dict(model.attn_processors)
        model.set_attn_processor({name: _replacement(processor) for name, processor in former.items()})
        before = model.register_forward_pre_hook(_begin, with_kwargs=True)
        after = model.register_forward_hook(_end, with_kwargs=True)
        return former, (before, after)

    def undo(self, model: Any, kept: Any) -> None:
        former, hooks = kept
        for hook in hooks:
            hook.remove()
        for name, ours in model.attn_processors.items():
            # keep what diffusers has set in the meantime (set_attention_backend, enable_parallelism)
            stock = former[name]
            stock._attention_backend, stock._parallel_config = ours._attention_backend, ours._parallel_config
        model.set_attn_processor(dict(former))


def _replacement(stock: Any) -> Any:
    """Return our counterpart of a stock processor; raise UserError for any other (an IP-Adapter's)."""
    from uhr.models.attention import processors

    for ours in (processors.FluxProcessor, processors.Flux2Processor, processors.Flux2SingleProcessor):
        # the stock class is the last base of ours
        if type(stock) is ours.__bases__[-1]:
            made = ours()
            made._attention_backend, made._parallel_config = stock._attention_backend, stock._parallel_config
            return made
    raise UserError(
        f"the model's attention runs in a {type(stock).__name__}",
        "remove what installed it (an IP-Adapter?)",
    )


def _begin(transformer: Any, args: tuple[Any, ...], kwargs: Inputs) -> tuple[tuple[()], Inputs] | None:
    found = _arguments(transformer, args, kwargs)
    if found is None:
        return None
    inputs, attention = found
    assert isinstance(attention, Attention), f"attention={attention!r}"
    ordered, call = attention.begin(transformer, inputs)
    return (), {**ordered, "joint_attention_kwargs": {**inputs["joint_attention_kwargs"], "attention": call}}


def _end(transformer: Any, args: tuple[Any, ...], kwargs: Inputs, output: Any) -> Any:
    call = (kwargs.get("joint_attention_kwargs") or {}).get("attention")
    if not isinstance(call, AttentionCall):
        return None
    if isinstance(output, tuple):
        return call.end(output[0]), *output[1:]
    output.sample = call.end(output.sample)
    return output


def _arguments(transformer: Any, args: tuple[Any, ...], kwargs: Inputs) -> tuple[Inputs, Any] | None:
    """Return all arguments by name and the `attention` among them; None if there is no `attention`."""
    names = list(inspect.signature(type(transformer).forward).parameters)[1:]
    inputs: Inputs = {**dict(zip(names, args, strict=False)), **kwargs}
    found: Mapping[str, Any] = inputs.get("joint_attention_kwargs") or {}
    attention = found.get("attention")
    return None if attention is None else (inputs, attention)


def _refuse_context_parallelism(transformer: Any) -> None:
    first = next(iter(transformer.attn_processors.values()))
    parallel = first._parallel_config
    if parallel is not None and parallel.context_parallel_config is not None:
        raise UserError(
            "windowed attention does not run with context parallelism: a rank lacks its neighbours' windows",
            "use a dense sampler, or one GPU per image",
        )
