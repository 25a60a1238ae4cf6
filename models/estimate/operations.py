"""Operations of one pass of each component, counted from its shapes: two for every multiply and add.

Linear layers, convolutions and the two products of attention are counted. Norms, activations and the like are
not: they cost bandwidth, and less than one per cent of the operations.
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
    """Numbers of operations: of matrix products with weights, of attention, and of convolutions."""

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
    """Return the sum of several `Operations`."""
    found = Operations()
    for part in parts:
        found = found.plus(part)
    return found


def dense_pairs(image: int, text: int) -> int:
    """Return the query-key pairs of one layer in which all tokens attend to all."""
    return (image + text) ** 2


@dataclass(frozen=True)
class BackboneCost:
    """The size of a FLUX transformer: weights of its linear layers by the tokens that pass them, and heads.

    `weights` counts elements under the keys image and text (tokens of one stream), joint (both streams), head
    (image tokens, in the last layer), once and head_once (one row per image: modulation, and the embedding of
    time and guidance).
    """

    weights: Mapping[str, int]
    layers: int
    heads: int
    head_dim: int

    @classmethod
    def of(cls, transformer: nn.Module) -> BackboneCost:
        """Measure a FLUX.1 or FLUX.2 transformer of diffusers, on any device."""
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
        """Return the operations of one pass over `image` and `text` tokens. `pairs` are the query-key pairs
        of one layer; None is dense attention."""
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
        """Return the operations that compute a guide's keys and values in all blocks
        (`attention/guide.py`)."""
        per_token = self.weights["image"] + self.weights["joint"]
        return Operations(2 * (tokens * per_token + self.weights["once"]), self.attention(pairs))

    def attention(self, pairs: int) -> int:
        """Return the operations of `pairs` query-key pairs in every layer: scores and weighted values."""
        return 4 * self.head_dim * self.heads * pairs * self.layers


def of_calls(calls: BackboneCalls, backbone: BackboneCost) -> Operations:
    """Return the operations of all of the calls, including those of their guide."""
    whole = backbone.call(calls.image, calls.text, calls.pairs).times(calls.count)
    if not calls.guide or calls.windows is None:
        return whole
    from uhr.models.attention.counts import pairs

    counted = pairs(calls.windows.layout, calls.windows.rules, calls.text)
    guide = backbone.guide(calls.guide, counted.guide)
    return whole.plus(guide.times(1 if calls.windows.guide == "kept" else calls.count))


def passed_by(name: str) -> str:
    """Return what passes the linear layer of that name in a FLUX transformer: a key of
    `BackboneCost.weights`."""
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
    """Return the operations of a text encoder over one prompt of `tokens` tokens, padding included."""
    from torch import nn

    linear = sum(m.in_features * m.out_features for m in encoder.modules() if isinstance(m, nn.Linear))
    config: Any = encoder.config
    heads = getattr(config, "num_attention_heads", None) or config.num_heads
    head_dim = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    head_dim = head_dim or config.hidden_size // heads
    layers = getattr(config, "num_hidden_layers", None) or config.num_layers
    return Operations(2 * tokens * linear, 4 * heads * head_dim * layers * tokens**2)
