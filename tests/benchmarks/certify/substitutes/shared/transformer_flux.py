"""Substitute for the official transformers of URAE, HiFlow and I-Max: diffusers' own, with NTK positions,
longer queries and repeated text for the tiny model of 8 x 8 tokens."""

import contextlib
import math

import torch
from diffusers import FluxTransformer2DModel as Stock

NATIVE = 8
TRAINED = 512 + NATIVE**2


class Positions(torch.nn.Module):
    """cos and sin of theta * factor; with a floor no frequency is below that of plain theta divided by it."""

    def __init__(self, axes, factor, floor):
        super().__init__()
        self.axes, self.factor, self.floor = axes, factor, floor

    def forward(self, ids):
        angles = []
        for axis, dim in enumerate(self.axes):
            share = torch.arange(0, dim, 2, dtype=torch.float64) / dim
            frequency = (10000.0 * self.factor) ** -share
            if self.floor is not None:
                frequency = torch.maximum(frequency, 10000.0**-share / self.floor)
            angles.append(ids[:, axis, None].double() * frequency)
        turned = torch.cat(angles, 1).repeat_interleave(2, 1)
        return turned.cos().float(), turned.sin().float()


class FluxTransformer2DModel(Stock):
    floors = False

    def forward(
        self,
        hidden_states,
        encoder_hidden_states,
        txt_ids,
        img_ids,
        ntk_factor=1.0,
        proportional_attention=True,
        text_duplication=False,
        **more,
    ):
        tokens = hidden_states.shape[1]
        if text_duplication:
            rows, columns = (int(img_ids[:, axis].max() + 1) // NATIVE for axis in (1, 2))
            corners = [(0, NATIVE * i, NATIVE * j) for i in range(rows) for j in range(columns)]
            txt_ids = torch.cat([txt_ids + torch.tensor(corner).to(txt_ids) for corner in corners])
            encoder_hidden_states = encoder_hidden_states.repeat(1, len(corners), 1)
        floor = None
        if self.floors and ntk_factor != 1:
            # without swin's ring: an even number of rows
            floor = int(math.sqrt(tokens)) // 2 * 2 / NATIVE
        longer = math.sqrt(math.log(tokens + encoder_hidden_states.shape[1]) / math.log(TRAINED))
        stock, self.pos_embed = self.pos_embed, Positions(self.config.axes_dims_rope, ntk_factor, floor)
        try:
            with self.longer_queries(longer if proportional_attention else 1.0):
                return super().forward(
                    hidden_states, encoder_hidden_states, txt_ids=txt_ids, img_ids=img_ids, **more
                )
        finally:
            self.pos_embed = stock

    @contextlib.contextmanager
    def longer_queries(self, factor):
        norms = [
            norm
            for block in [*self.transformer_blocks, *self.single_transformer_blocks]
            for norm in (block.attn.norm_q, getattr(block.attn, "norm_added_q", None))
            if norm is not None
        ]
        hooks = [norm.register_forward_hook(lambda module, args, out: out * factor) for norm in norms]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
