"""The guide stream: UltraGen's low-resolution tokens Y, run through the backbone's own blocks at timestep 0.

Y is a third stream besides text and image, with its own modulation (that of timestep 0, same guidance and
same pooled text) and scaled positions. It never attends to the image; the image attends to it in every layer.
So a layer of Y is one more call of the same stock block, on Y alone, made inside the block's attention when
the keys and values of Y are needed: the text stream of that call has length 0, and the text that Y may see is
the text stream's rotated keys and values in that layer. No block is copied or patched.

Two modes:

- exact (the default, and the only one that carries gradients): Y runs through every layer of every call. This
  is joint attention over [T | X | Y] under `mask.py`, and the reference for the other mode.
- cached: the first call stores every layer's keys and values of Y, later ones read them. Y depends on the
  text stream, and that stream on the image and the timestep: a stored Y has seen the text of the step at
  which it was stored. The two modes agree at that step, and at every step if `guide_to_text` is off, because
  then nothing in Y depends on the step; otherwise later steps attend to keys that are slightly out of date.
  Cost of exact: the blocks on M = N/16 more tokens. Cost of cached: 2 * M * width values per layer are kept
  (2.9 GB at 4K for FLUX.1 in bfloat16).

A cache belongs to one prompt and one guide. It is filled again when text, guide, guidance, positions or
adapters differ from those it was made with; `clear` does that on demand (at a chosen step).
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from uhr.base.errors import UserError
from uhr.models.adapters.masked import TokenMask, masks
from uhr.models.attention import gathered
from uhr.models.attention.layout import WindowLayout
from uhr.models.attention.processors import Attend, Rotary
from uhr.models.attention.streams import GuideStream
from uhr.models.attention.window_rules import WindowRules

SEEN = ("encoder_hidden_states", "pooled_projections", "guidance", "img_ids", "txt_ids")
"""Arguments of a call that the guide depends on, besides its latents."""


@dataclass
class GuideCache:
    """Keys and values of Y, [B, M, H, D] by layer, and the tensors and weights that they were computed
    from."""

    layers: dict[int, gathered.KeysValues] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    weights: Hashable = None

    def clear(self) -> None:
        """Empty the cache: the next call stores its own keys and values."""
        self.layers.clear()
        self.tensors.clear()
        self.weights = None

    def match(self, tensors: Mapping[str, torch.Tensor], weights: Hashable) -> None:
        """Clear the cache if it was computed from other tensors or weights, and record these."""
        same = self.tensors.keys() == tensors.keys() and self.weights == weights
        if same and all(_equal(self.tensors[name], tensors[name]) for name in tensors):
            return
        self.clear()
        # copies: a caller may write into its tensors
        self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self.weights = weights


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and bool(torch.equal(a, b))


@dataclass
class Guide:
    """The guide of an image: its clean packed latents at 1/ratio of the size, [B, M, C] in raster order.

    Token-masked adapters (`adapters/masked.py`: UltraGen's LoRA) act on these tokens and on no others.
    """

    latents: torch.Tensor
    cached: bool = False
    cache: GuideCache = field(default_factory=GuideCache)

    def begin(
        self, transformer: Any, inputs: Mapping[str, Any], layout: WindowLayout, rules: WindowRules
    ) -> GuideRun:
        """Prepare the guide for one call of `transformer`; `inputs` are the call's arguments by name.

        Raises UserError for a cached guide while gradients are enabled.
        """
        image = inputs["hidden_states"]
        shape = (image.shape[0], layout.guide_tokens, image.shape[2])
        assert tuple(self.latents.shape) == shape, f"guide {tuple(self.latents.shape)} is not {shape}"
        if self.cached:
            if torch.is_grad_enabled():
                raise UserError(
                    "a cached guide carries no gradients", "run without gradients, or with cached=False"
                )
            seen = {name: inputs[name] for name in SEEN if isinstance(inputs.get(name), torch.Tensor)}
            scale = (inputs.get("joint_attention_kwargs") or {}).get("scale", 1.0)
            self.cache.match({"latents": self.latents, **seen}, (weights_state(transformer), scale, rules))
        latents = layout.guide_to_windows(self.latents).to(image.device, image.dtype)
        stream = GuideStream.of(transformer, latents, inputs)
        if len(self.cache.layers) < len(stream.blocks):
            self.cache.layers.clear()  # the call that stored them did not finish
        return GuideRun(self, stream, layout, rules, layout.anchors(image.device), masks(transformer))


@dataclass
class GuideRun:
    """The guide within one transformer call."""

    guide: Guide
    stream: GuideStream
    layout: WindowLayout
    rules: WindowRules
    anchors: torch.Tensor
    masks: list[TokenMask]
    states: dict[int, torch.Tensor] = field(default_factory=dict)
    """Y before each layer. Kept while gradients are enabled, since gradient checkpointing (not reentrant,
    diffusers' default) runs a layer twice."""

    @torch.compiler.disable
    def keys_values(self, layer: Any, text: gathered.KeysValues, rotary: Rotary) -> gathered.KeysValues:
        """Return Y's rotated keys and values in the layer of processor `layer`: two [B, M, H, D],
        window-first.

        `text` are the text stream's keys and values in this layer, `rotary` the angles of [T | X].
        """
        index = self.stream.index(layer)
        kept = self.guide.cache.layers
        if self.guide.cached and index in kept:
            return kept[index]
        length = text[0].shape[1]
        own_rotary = (rotary[0][length:][self.anchors], rotary[1][length:][self.anchors])
        call = GuidePass(text, self.layout, self.rules)
        with _chosen(self.masks):
            state = self.stream.embed() if index == 0 else self.states[index]
            following = self.stream.step(index, state, own_rotary, call)
        self.states.setdefault(index + 1, following)
        if not torch.is_grad_enabled():
            self.states.pop(index, None)
        assert call.own is not None
        if self.guide.cached:
            kept[index] = call.own
        return call.own


@contextlib.contextmanager
def _chosen(masks: list[TokenMask]) -> Generator[None]:
    """Let the masks choose all tokens and the modulation inside the block, and none of them after it."""
    for mask in masks:
        mask.choose(image=True, joint=True, modulation=True)
    try:
        yield
    finally:
        for mask in masks:
            mask.choose()


@dataclass
class GuidePass(Attend):
    """Attention of Y's tokens in one layer; it stores their keys and values in `own`."""

    text: gathered.KeysValues
    layout: WindowLayout
    rules: WindowRules
    own: gathered.KeysValues | None = None

    def attend(
        self, layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rotary: Rotary
    ) -> torch.Tensor:
        self.own = (key, value)
        return gathered.attend_guide(query, self.own, self.text, self.layout, self.rules)


def weights_state(transformer: Any) -> Hashable:
    """Return a key that changes when weights or adapters do.

    It contains the identity and version of each parameter, and the plain settings (scales, names, switches)
    of every module that is not a class of torch or diffusers.
    """
    # offloaded layer by layer, each is on the meta device between calls, and another object every time
    loaded = (p for p in transformer.parameters() if not p.is_meta)
    parameters = tuple((id(p), 0 if p.is_inference() else p._version) for p in loaded)
    settings = []
    for module in transformer.modules():
        if not type(module).__module__.startswith(("torch.", "diffusers.")):
            settings.append(tuple(_plain(name, value) for name, value in vars(module).items()))
    return parameters, tuple(settings)


def _plain(name: str, value: Any) -> str:
    simple = (
        isinstance(value, bool | int | float | str | list | tuple | dict | set | None) and name[:1] != "_"
    )
    return f"{name}={value!r}" if simple or name in ("_active_adapter", "_disable_adapters") else name
