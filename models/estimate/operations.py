"""Operations of one pass of each component, counted from its shapes: two for every multiply and add.

Counted are linear layers, convolutions and attention's two products; norms, activations and the like are not
(they cost bandwidth, and under a per cent of the operations).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import nn

    from uhr.models.samplers.core.plan import BackboneCalls


class Operations(NamedTuple):
    """By what they run on: matrix products of weights, of attention, and convolutions."""

    linear: int = 0
    attention: int = 0
    convolution: int = 0

    @property
    def total(self) -> int:
        return sum(self)

    def plus(self, other: Operations) -> Operations:
        return Operations(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, count: int) -> Operations:
        return Operations(*(count * each for each in self))


def total(parts: Any) -> Operations:
    """The sum of some operations."""
    found = Operations()
    for part in parts:
        found = found.plus(part)
    return found


def dense_pairs(image: int, text: int) -> int:
    """Query-key pairs of one layer in which all tokens attend to all."""
    return (image + text) ** 2


@dataclass(frozen=True)
class BackboneCost:
    """A FLUX transformer: elements of the linear layers' weights by what passes them, and its attention.

    `weights` has the keys image and text (the tokens of one stream), joint (both), head (image tokens, at the
    very end), once and head_once (one row an image: modulation and the embedding of time and guidance).
    """

    weights: Mapping[str, int]
    layers: int
    heads: int
    head_dim: int

    @classmethod
    def of(cls, transformer: nn.Module) -> BackboneCost:
        """Of a FLUX.1 or FLUX.2 transformer of diffusers, on any device."""
        from torch import nn

        weights: Counter[str] = Counter(image=0, text=0, joint=0, head=0, once=0, head_once=0)
        for name, module in transformer.named_modules():
            if isinstance(module, nn.Linear):
                weights[passed_by(name)] += module.in_features * module.out_features
        config: Any = transformer.config
        return cls(
            dict(weights),
            config.num_layers + config.num_single_layers,
            config.num_attention_heads,
            config.attention_head_dim,
        )

    def call(self, image: int, text: int, pairs: int | None = None) -> Operations:
        """One pass over so many image and text tokens; `pairs` of one layer, all of them if None."""
        per_token = self.weights
        linear = (
            image * (per_token["image"] + per_token["head"])
            + text * per_token["text"]
            + (image + text) * per_token["joint"]
            + per_token["once"]
            + per_token["head_once"]
        )
        return Operations(2 * linear, self.attention(dense_pairs(image, text) if pairs is None else pairs))

    def guide(self, tokens: int, pairs: int) -> Operations:
        """The guide's own way through all blocks (`attention/guide.py`), to its keys and values."""
        per_token = self.weights["image"] + self.weights["joint"]
        return Operations(2 * (tokens * per_token + self.weights["once"]), self.attention(pairs))

    def attention(self, pairs: int) -> int:
        """Of `pairs` in every layer: scores and weighted values."""
        return 4 * self.head_dim * self.heads * pairs * self.layers


def of_calls(calls: BackboneCalls, backbone: BackboneCost) -> Operations:
    """The operations of all of the calls, those of their guide included."""
    whole = backbone.call(calls.image, calls.text, calls.pairs).times(calls.count)
    if not calls.guide or calls.windows is None:
        return whole
    from uhr.models.attention.counts import pairs

    counted = pairs(calls.windows.layout, calls.windows.rules, calls.text)
    guide = backbone.guide(calls.guide, counted.guide)
    return whole.plus(guide.times(1 if calls.windows.guide == "kept" else calls.count))


def passed_by(name: str) -> str:
    """What passes a FLUX transformer's linear layer of that name: a key of `BackboneCost.weights`."""
    if name == "proj_out":
        return "head"
    if name.startswith("norm_out"):
        return "head_once"
    if "norm" in name or "modulation" in name or name.startswith(("time_text_embed", "time_guidance_embed")):
        return "once"
    if "context" in name or ".add_" in name or ".to_add_out" in name:
        return "text"
    return "joint" if name.startswith("single_transformer_blocks") else "image"


def encode_text(encoder: nn.Module, tokens: int) -> Operations:
    """A text encoder's pass over one prompt of so many tokens, padding included."""
    from torch import nn

    linear = sum(m.in_features * m.out_features for m in encoder.modules() if isinstance(m, nn.Linear))
    config: Any = encoder.config
    heads = getattr(config, "num_attention_heads", None) or config.num_heads
    head_dim = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    head_dim = head_dim or config.hidden_size // heads
    layers = getattr(config, "num_hidden_layers", None) or config.num_layers
    return Operations(2 * tokens * linear, 4 * heads * head_dim * layers * tokens**2)
