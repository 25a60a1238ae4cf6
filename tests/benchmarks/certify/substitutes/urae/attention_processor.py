"""Substitute for URAE's attention processor: diffusers' own on layers to whose results factors are added."""

import torch
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor


class FluxAttnAdaptationProcessor2_0(torch.nn.Module):
    def __init__(self, rank=16, dim=3072, to_out=False):
        super().__init__()
        for name in ["to_q", "to_k", "to_v", *(["to_out"] if to_out else [])]:
            setattr(self, f"{name}_a", torch.nn.Linear(dim, rank, bias=False))
            setattr(self, f"{name}_b", torch.nn.Linear(rank, dim, bias=False))
        self.plain = [FluxAttnProcessor()]

    def forward(
        self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None
    ):
        return self.plain[0](
            Added(attn, self), hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
        )


class Added:
    """An attention layer as it is, but for the linears that have factors."""

    def __init__(self, attn, processor):
        self.attn, self.processor = attn, processor

    def __getattr__(self, name):
        found = getattr(self.attn, name)
        if name == "to_out" and hasattr(self.processor, "to_out_a"):
            return [self.added(found[0], name), found[1]]
        return self.added(found, name) if name in ("to_q", "to_k", "to_v") else found

    def added(self, linear, name):
        low, high = getattr(self.processor, f"{name}_a"), getattr(self.processor, f"{name}_b")
        return lambda x: linear(x) + high(low(x))
