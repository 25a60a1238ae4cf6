"""How a sampler or a trainer attends differently: put the processors on once, then say it call by call.

    with temporarily(transformer, AttentionCalls()):                       # models/surgery/base.py
        windows = Windows(WindowLayout.of_pixels(4096, 4096, token=16), guide=Guide(guide_latents))
        velocity = transformer(hidden_states=..., img_ids=..., ...,        # all in raster order, as ever
                               joint_attention_kwargs={"attention": windows})

Everything outside stays as it is: tokens and ids go in and come out in raster order, the state dict is the
same, and a call without `attention` is the stock one, bit for bit. A pipeline that passes
`joint_attention_kwargs` on needs no change either. Blocks may be compiled (`compile_repeated_blocks`), with
`fullgraph` only for FlexAttention without a guide.
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
from uhr.models.attention.rules import WindowRules
from uhr.models.surgery.base import Surgery

Inputs = dict[str, Any]
"""A transformer call's arguments by name."""


class Attention(ABC):
    """What a caller passes as `attention`; its attributes may be shared by many calls."""

    @abstractmethod
    def begin(self, transformer: Any, inputs: Inputs) -> tuple[Inputs, Call]:
        """The arguments as the stock forward shall get them, and what the processors will find."""


class Call(Attend):
    """One transformer call."""

    def end(self, sample: torch.Tensor) -> torch.Tensor:
        """The transformer's output [B, N, C] as the caller shall get it."""
        return sample


@dataclass
class Windows(Attention):
    """UltraGen's hierarchical local attention over a grid of image tokens, with or without a guide.

    `backend` "auto" is "flex" on CUDA and "gathered" elsewhere; the two agree to rounding. `masks` keeps
    flex's block masks: hand one to all that attend over the same grids. Use one `Windows` a prompt: a cached
    guide belongs to one text.
    """

    layout: WindowLayout
    rules: WindowRules = field(default_factory=WindowRules)
    guide: Guide | None = None
    backend: Literal["auto", "gathered", "flex"] = "auto"
    masks: flex.BlockMasks = field(default_factory=flex.BlockMasks)

    def begin(self, transformer: Any, inputs: Inputs) -> tuple[Inputs, Call]:
        image = inputs["hidden_states"]
        assert image.shape[1] == self.layout.tokens, f"{image.shape[1]} tokens are not {self.layout}"
        for name in ("controlnet_block_samples", "controlnet_single_block_samples"):
            if inputs.get(name) is not None:
                raise UserError("windowed attention takes no ControlNet", "leave one of them out")
        _refuse_context_parallelism(transformer)
        for mask in masks(transformer):
            mask.tell()  # image and text: the guide's pass chooses its own
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


@dataclass
class _WindowsCall(Call):
    layout: WindowLayout
    rules: WindowRules
    text: int
    guide: GuideRun | None
    mask: Any
    """FlexAttention's; None for the gathered back end."""

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
    """Lets every attention layer of a FLUX.1 or FLUX.2 transformer listen to `attention`."""

    name: ClassVar[str] = "attention-calls"
    seats: ClassVar[frozenset[str]] = frozenset({"transformer.attn_processors"})

    def perform(self, model: Any) -> Any:
        former = dict(model.attn_processors)
        model.set_attn_processor({name: _listening(processor) for name, processor in former.items()})
        before = model.register_forward_pre_hook(_begin, with_kwargs=True)
        after = model.register_forward_hook(_end, with_kwargs=True)
        return former, (before, after)

    def undo(self, model: Any, kept: Any) -> None:
        former, hooks = kept
        for hook in hooks:
            hook.remove()
        for name, ours in model.attn_processors.items():
            # what diffusers was told in the meantime (set_attention_backend, enable_parallelism) stays told
            stock = former[name]
            stock._attention_backend, stock._parallel_config = ours._attention_backend, ours._parallel_config
        model.set_attn_processor(dict(former))


def _listening(stock: Any) -> Any:
    """The processor of ours in place of a stock one; anything else (an IP-Adapter's) is a UserError."""
    from uhr.models.attention import processors

    for ours in (processors.FluxProcessor, processors.Flux2Processor, processors.Flux2SingleProcessor):
        if type(stock) is ours.__base__:
            made = ours()
            made._attention_backend, made._parallel_config = stock._attention_backend, stock._parallel_config
            return made
    raise UserError(
        f"the model's attention runs in a {type(stock).__name__}",
        "take off what put it there (an IP-Adapter?)",
    )


def _begin(transformer: Any, args: tuple[Any, ...], kwargs: Inputs) -> tuple[tuple[()], Inputs] | None:
    asked = _asked(transformer, args, kwargs)
    if asked is None:
        return None
    inputs, attention = asked
    assert isinstance(attention, Attention), f"attention={attention!r}"
    ordered, call = attention.begin(transformer, inputs)
    return (), {**ordered, "joint_attention_kwargs": {**inputs["joint_attention_kwargs"], "attention": call}}


def _end(transformer: Any, args: tuple[Any, ...], kwargs: Inputs, output: Any) -> Any:
    call = (kwargs.get("joint_attention_kwargs") or {}).get("attention")
    if not isinstance(call, Call):
        return None
    if isinstance(output, tuple):
        return call.end(output[0]), *output[1:]
    output.sample = call.end(output.sample)
    return output


def _asked(transformer: Any, args: tuple[Any, ...], kwargs: Inputs) -> tuple[Inputs, Any] | None:
    """All arguments by name, and the `attention` among them; None where there is none."""
    names = list(inspect.signature(type(transformer).forward).parameters)[1:]
    inputs: Inputs = {**dict(zip(names, args, strict=False)), **kwargs}
    asked: Mapping[str, Any] = inputs.get("joint_attention_kwargs") or {}
    attention = asked.get("attention")
    return None if attention is None else (inputs, attention)


def _refuse_context_parallelism(transformer: Any) -> None:
    first = next(iter(transformer.attn_processors.values()))
    parallel = first._parallel_config
    if parallel is not None and parallel.context_parallel_config is not None:
        raise UserError(
            "windowed attention does not run with context parallelism: a rank lacks its neighbours' windows",
            "take a dense sampler, or one GPU an image",
        )
