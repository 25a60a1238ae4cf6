"""Substitute: one masked attention over text, image and guide, on the parts of diffusers' transformer.

The guide is a third stream at timestep 0. The LoRA acts on its tokens alone, as the paper has it.
"""

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import apply_rotary_emb


def forward(model, plain, state, guide=None):
    """The velocity of image tokens. `model` has the LoRA, `plain` not; `state` has tokens, text, pooled,
    sigma, guidance, angles and mask."""
    batch = state["tokens"].shape[0]
    guidance = state["guidance"].expand(batch) * 1000
    now = plain.time_text_embed(state["sigma"].expand(batch) * 1000, guidance, state["pooled"])
    clean = model.time_text_embed(torch.zeros(batch), guidance, state["pooled"])
    streams = [plain.context_embedder(state["text"]), plain.x_embedder(state["tokens"])]
    if guide is not None:
        streams.append(model.x_embedder(guide))
    times = [now, now, clean][: len(streams)]
    for index, block in enumerate(plain.transformer_blocks):
        own = [block, block, model.transformer_blocks[index]][: len(streams)]
        streams = double(own, streams, times, state)
    for index, block in enumerate(plain.single_transformer_blocks):
        own = [block, block, model.single_transformer_blocks[index]][: len(streams)]
        streams = single(own, streams, times, state)
    return plain.proj_out(plain.norm_out(streams[1], now))


def double(blocks, streams, times, state):
    normed, gates, heads = [], [], []
    for i, (block, x, time) in enumerate(zip(blocks, streams, times, strict=True)):
        x, *rest = (block.norm1_context if i == 0 else block.norm1)(x, emb=time)
        normed.append(x)
        gates.append([each[:, None] for each in rest])
        attn = block.attn
        if i == 0:
            parts = (
                (attn.add_q_proj, attn.norm_added_q),
                (attn.add_k_proj, attn.norm_added_k),
                attn.add_v_proj,
            )
        else:
            parts = (attn.to_q, attn.norm_q), (attn.to_k, attn.norm_k), attn.to_v
        heads.append(in_heads(x, parts, attn))
    found = []
    for i, (block, x, out) in enumerate(zip(blocks, streams, attend(heads, state), strict=True)):
        gate, shift, scale, gate_mlp = gates[i]
        x = x + gate * (block.attn.to_add_out(out) if i == 0 else block.attn.to_out[0](out))
        norm, feed = (block.norm2_context, block.ff_context) if i == 0 else (block.norm2, block.ff)
        found.append(x + gate_mlp * feed(norm(x) * (1 + scale) + shift))
    return found


def single(blocks, streams, times, state):
    normed = [block.norm(x, emb=time) for block, x, time in zip(blocks, streams, times, strict=True)]
    heads = [
        in_heads(
            x,
            ((block.attn.to_q, block.attn.norm_q), (block.attn.to_k, block.attn.norm_k), block.attn.to_v),
            block.attn,
        )
        for block, (x, _) in zip(blocks, normed, strict=True)
    ]
    found = []
    for block, x, (y, gate), out in zip(blocks, streams, normed, attend(heads, state), strict=True):
        fed = block.act_mlp(block.proj_mlp(y))
        found.append(x + gate[:, None] * block.proj_out(torch.cat([out, fed], 2)))
    return found


def in_heads(x, parts, attn):
    (to_q, norm_q), (to_k, norm_k), to_v = parts
    split = [layer(x).unflatten(-1, (attn.heads, -1)) for layer in (to_q, to_k, to_v)]
    return norm_q(split[0]), norm_k(split[1]), split[2]


def attend(heads, state):
    lengths = [each[0].shape[1] for each in heads]
    q, k, v = (torch.cat([each[i] for each in heads], 1) for i in range(3))
    q, k = (apply_rotary_emb(x, state["angles"], sequence_dim=1) for x in (q, k))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=state["mask"])
    return out.transpose(1, 2).flatten(2).split(lengths, 1)
