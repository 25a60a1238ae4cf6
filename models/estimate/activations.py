"""Bytes that a pass needs besides the weights, counted by running it on tensors without memory
(`live_bytes.py`)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from uhr.models.estimate.operations import Operations
from uhr.models.samplers.core.plan import BackboneCalls, VaeCall, WindowedAttention

if TYPE_CHECKING:
    import torch

    from uhr.models.families.base import Backbone
    from uhr.models.vae.tiled import ExactTiling


class BackboneMemory:
    """Memory that calls of a FLUX transformer need besides its weights.

    It is measured on one double and one single block, since every other block frees what it allocates.
    `transformer` may be on any device; `dtype` is the one that it would be loaded in.
    """

    def __init__(self, backbone: Backbone, transformer: Any, dtype: torch.dtype) -> None:
        import torch

        config = {**transformer.config, "num_layers": 1, "num_single_layers": 1}
        with torch.device("meta"):
            slim = type(transformer).from_config(config).eval().requires_grad_(False)
        self._slim = torch.nn.Module.to(slim, dtype=dtype)
        self._backbone, self._dtype = backbone, dtype
        whole = transformer.config
        self._layers = whole.num_layers + whole.num_single_layers
        self._width = whole.num_attention_heads * whole.attention_head_dim

    def peak(self, calls: BackboneCalls) -> int:
        """Return the most bytes of activations alive at once in one of the calls, guide included.

        Attention is counted as the gathered back end for windows, else as one fused kernel.
        """
        import torch

        from uhr.models.attention.call import AttentionCalls
        from uhr.models.estimate.live_bytes import peak_bytes
        from uhr.models.surgery.base import temporarily

        sample = torch.empty(
            calls.together, calls.image, self._slim.config.in_channels, device="meta", dtype=torch.float32
        )
        level = torch.empty(calls.together, device="meta")
        condition = self._condition(calls)

        def call() -> torch.Tensor:
            return self._backbone.call(self._slim, sample, level, condition)

        with temporarily(self._slim, AttentionCalls()):
            return peak_bytes(call)

    def kept(self, calls: BackboneCalls) -> int:
        """Return the bytes of a guide's keys and values that one branch of guidance keeps between calls."""
        if calls.windows is None or calls.windows.guide != "kept":
            return 0
        return 2 * self._layers * calls.guide * self._width * self._dtype.itemsize * calls.together

    def _attention(self, calls: BackboneCalls) -> Any:
        from uhr.models.attention.call import Windows
        from uhr.models.attention.proportional import Proportional

        windows = calls.windows
        if windows is None:
            return Proportional()
        return Windows(windows.layout, windows.rules, self._guide(calls, windows), "gathered")

    def _guide(self, calls: BackboneCalls, windows: WindowedAttention) -> Any:
        import torch

        from uhr.models.attention.guide import Guide

        if windows.guide == "none":
            return None
        channels = self._slim.config.in_channels
        return Guide(torch.empty(calls.together, calls.guide, channels, device="meta"))

    def _condition(self, calls: BackboneCalls) -> Any:
        import torch

        config, batch = self._slim.config, calls.together
        shapes = self._backbone.text_shapes(config, calls.text)
        texts = {name: torch.empty(batch, *shape, device="meta") for name, shape in shapes.items()}
        guidance = torch.empty(batch, device="meta") if config.get("guidance_embeds") else None
        # only the number of positions matters
        image_ids = self._backbone.image_ids(calls.image, 1, "meta")
        condition = self._backbone.condition(texts, image_ids, guidance, self._dtype)
        return replace(condition, attention=self._attention(calls))


def vae_call_cost(vae: Any, call: VaeCall, tiling: ExactTiling) -> tuple[int, Operations]:
    """Return the most bytes alive in one pass of a VAE under exact tiling, input and result included, and its
    operations. With little memory, tiling repeats some of them."""
    from uhr.models.vae.f16 import vae_factor

    factor = 1 if call.part == "encode" else vae_factor(vae)
    held, flops = tiling.peak_and_flops(vae, call.part, call.height // factor, call.width // factor)
    return held, Operations(convolution=flops)
