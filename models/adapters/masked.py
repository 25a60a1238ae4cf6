"""LoRA on chosen tokens only, inside the linear: y = W x + m (B A x) scale, m = 1 on the chosen rows of x.

UltraGen's adapter acts on guide tokens and leaves image and text to the frozen weights (2510.16325, section
3, "Parameter-Efficient Joint Denoising"; the official code switches scales in a context manager and misses
the joint pass). Here the choice is a `TokenMask` that all layers of an adapter share. The code that lays out
the sequence sets it before each call:

    mask = TokenMask();  mask_adapter(transformer, "guide", mask)
    mask.choose(image=rows[512:], joint=rows)                 # [text | image | guide] in one pass
    mask.choose(image=True, joint=True, modulation=True)      # a pass of guide tokens alone
    mask.choose()                                             # a pass without any

Code that did not make the mask finds it by `masks(transformer)`. A choice is valid until the next one, so
that gradient checkpointing, which runs a layer again in the backward pass, has the same mask.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from uhr.base.errors import UserError
from uhr.models.adapters import peft_layers
from uhr.models.adapters.low_rank import LowRank
from uhr.models.adapters.peft_layers import Variant

Stream = Literal["image", "text", "joint", "modulation"]
"""The input of a linear: image tokens or text tokens (double blocks), both, text first (single blocks), or
one vector per sample without tokens (everything that reads the time embedding)."""

Rows = torch.Tensor | bool
"""Chosen rows of a stream: bool [S], or all (True) or none (False) of them."""


class TokenMask:
    """The rows of each stream that an adapter acts on; one object for all of its layers."""

    def __init__(self) -> None:
        self.chosen: dict[Stream, tuple[int, torch.Tensor] | bool] | None = None
        """The last choice; a sampler restores it after its call."""

    def choose(
        self, *, image: Rows = False, text: Rows = False, joint: Rows = False, modulation: bool = False
    ) -> None:
        """Choose the rows for the following calls.

        Tensors are bool [tokens], the same for every sample of a batch; on the model's device they save a
        copy per layer.
        """
        assert isinstance(modulation, bool), "a modulation has no rows to choose from"
        rows: dict[Stream, Rows] = {"image": image, "text": text, "joint": joint, "modulation": modulation}
        self.chosen = {stream: _indices(choice) for stream, choice in rows.items()}

    def rows(self, stream: Stream, tokens: int, name: str) -> torch.Tensor | bool:
        """Return the indices of the chosen rows of a stream of `tokens` tokens, or True (all) or False
        (none).

        Raises UserError, which names adapter `name`, if no rows were ever chosen.
        """
        if self.chosen is None:
            what = f"adapter '{name}' acts on chosen tokens only, and nothing here chooses any"
            raise UserError(what, "sample with ultragen, or leave the adapter out")
        chosen = self.chosen[stream]
        if isinstance(chosen, bool):
            return chosen
        length, index = chosen
        assert length == tokens, f"the mask of the {stream} stream is {length} tokens long, not {tokens}"
        return index


def _indices(rows: Rows) -> tuple[int, torch.Tensor] | bool:
    if isinstance(rows, bool):
        return rows
    assert rows.dtype == torch.bool, rows.dtype
    assert rows.ndim == 1, tuple(rows.shape)
    return len(rows), rows.nonzero().flatten()


class Masked(Variant):
    """Add (alpha / rank) B A on the chosen rows; the others are not computed and unchanged, bit for bit."""

    def __init__(self, mask: TokenMask, stream: Stream) -> None:
        self.mask, self.stream = mask, stream

    def forward(
        self, module: Any, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        rows = self.mask.rows(self.stream, x.shape[-2] if x.ndim > 1 else 1, active_adapter)
        if rows is False:
            return result
        a, b, scale = (
            module.lora_A[active_adapter],
            module.lora_B[active_adapter],
            module.scaling[active_adapter],
        )
        if rows is True:
            return result + b(a(x)) * scale
        index = rows.to(x.device)
        changed = result.index_select(-2, index) + b(a(x.index_select(-2, index))) * scale
        return result.index_copy(-2, index, changed.to(result.dtype))

    def delta(self, module: Any, name: str) -> torch.Tensor:
        raise _not_a_weight(name)

    def low_rank(self, module: Any, name: str) -> LowRank:
        raise _not_a_weight(name)


def _not_a_weight(name: str) -> UserError:
    what = f"adapter '{name}' acts on chosen tokens only and is not a change of the weights"
    return UserError(what, "keep it as an adapter: it cannot be merged or added to others in one LoRA")


def mask_adapter(transformer: Any, name: str, mask: TokenMask) -> None:
    """Restrict an ordinary LoRA on the model to the tokens that `mask` chooses, in all its layers."""
    for path, layer in peft_layers.layers_of(transformer, name).items():
        peft_layers.attach({path: layer}, name, Masked(mask, stream_of(path)))


def masks(transformer: Any) -> list[TokenMask]:
    """Return the masks of a model's token-masked adapters, each once."""
    acting = (variant for variant in peft_layers.variants(transformer) if isinstance(variant, Masked))
    return list({id(variant.mask): variant.mask for variant in acting}.values())


def stream_of(path: str) -> Stream:
    """Return the input of the linear at this path of a FLUX.1 or FLUX.2 transformer."""
    leaf = path.rpartition("transformer_blocks.")[2]
    if path.startswith("single_transformer_blocks."):
        return "modulation" if ".norm." in leaf else "joint"
    if path.startswith("transformer_blocks."):
        if ".norm" in leaf:
            return "modulation"
        text = (".attn.add_", ".attn.to_add_out", ".ff_context.")
        return "text" if any(name in leaf for name in text) else "image"
    tokens: dict[str, Stream] = {"x_embedder": "image", "proj_out": "image", "context_embedder": "text"}
    return tokens.get(path, "modulation")
