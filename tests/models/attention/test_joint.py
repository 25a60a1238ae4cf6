"""The guide in real transformers, against one joint attention over text, image and guide, written by hand."""

import copy

import pytest
import torch

from uhr.models.attention.call import AttentionCalls, Windows
from uhr.models.attention.guide import Guide
from uhr.models.attention.layout import WindowLayout
from uhr.models.attention.window_rules import WindowRules
from uhr.models.ops import latents
from uhr.models.surgery.base import temporarily

TEXT, HEADS, HEAD_DIM = 7, 2, 32
LAYOUT = WindowLayout(8, 12, window=4, ratio=2)


def run(model, arguments, attention=None, **changes):
    kwargs = None if attention is None else {"attention": attention}
    return model(**{**arguments, **changes}, joint_attention_kwargs=kwargs)[0]


def joint_run(model, arguments, guide_latents, mask, guide_model=None):
    """Text, image and guide through the model's own parts, one dense masked attention over [T | X | Y] a
    layer.

    `guide_model` has the weights that the guide's tokens see.
    """
    theirs = guide_model if guide_model is not None else model
    if type(model).__name__.startswith("Flux2"):
        return _joint_flux2(model, theirs, arguments, guide_latents, mask)
    return _joint_flux1(model, theirs, arguments, guide_latents, mask)


def _angles(model, arguments):
    guide_ids = arguments["img_ids"].view(LAYOUT.height, LAYOUT.width, -1)[:: LAYOUT.ratio, :: LAYOUT.ratio]
    # the scaled positions themselves, not a selection of the image's
    scaled = LAYOUT.ratio * latents.image_ids(LAYOUT.guide_height, LAYOUT.guide_width)
    assert torch.equal(guide_ids.flatten(0, 1)[:, :3], scaled)
    every = torch.cat([arguments["txt_ids"], arguments["img_ids"], guide_ids.flatten(0, 1)])
    return model.pos_embed(every)


def _heads(*streams):
    return torch.cat([x.unflatten(-1, (HEADS, HEAD_DIM)) for x in streams], dim=1)


def _attention(query, key, value, angles, mask):
    from diffusers.models.embeddings import apply_rotary_emb

    query, key = (apply_rotary_emb(x, angles, sequence_dim=1).transpose(1, 2) for x in (query, key))
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value.transpose(1, 2), attn_mask=mask)
    lengths = [TEXT, LAYOUT.tokens, LAYOUT.guide_tokens]
    return out.transpose(1, 2).flatten(2).split(lengths, dim=1)


def _double(attn, attn_y, text, image, guide):
    """Query, key and value of [T | X | Y] in a double block."""
    query = [
        attn.norm_added_q(_heads(attn.add_q_proj(text))),
        attn.norm_q(_heads(attn.to_q(image))),
        attn_y.norm_q(_heads(attn_y.to_q(guide))),
    ]
    key = [
        attn.norm_added_k(_heads(attn.add_k_proj(text))),
        attn.norm_k(_heads(attn.to_k(image))),
        attn_y.norm_k(_heads(attn_y.to_k(guide))),
    ]
    value = _heads(attn.add_v_proj(text), attn.to_v(image), attn_y.to_v(guide))
    return torch.cat(query, dim=1), torch.cat(key, dim=1), value


def _joint_flux1(model, theirs, arguments, guide_latents, mask):
    pooled, guidance = arguments["pooled_projections"], arguments["guidance"] * 1000
    now = model.time_text_embed(arguments["timestep"] * 1000, guidance, pooled)
    clean = theirs.time_text_embed(torch.zeros(2, dtype=torch.float64), guidance, pooled)
    angles = _angles(model, arguments)
    text = model.context_embedder(arguments["encoder_hidden_states"])
    image, guide = model.x_embedder(arguments["hidden_states"]), theirs.x_embedder(guide_latents)

    for block, other in zip(model.transformer_blocks, theirs.transformer_blocks, strict=True):
        attn, attn_y = block.attn, other.attn
        t, *mod_t = block.norm1_context(text, emb=now)
        x, *mod_x = block.norm1(image, emb=now)
        y, *mod_y = other.norm1(guide, emb=clean)
        t, x, y = _attention(*_double(attn, attn_y, t, x, y), angles, mask)

        def after(hidden, out, modulation, norm, feed):
            gate, shift, scale, gate_mlp = (m[:, None] for m in modulation)
            hidden = hidden + gate * out
            return hidden + gate_mlp * feed(norm(hidden) * (1 + scale) + shift)

        text = after(text, attn.to_add_out(t), mod_t, block.norm2_context, block.ff_context)
        image = after(image, attn.to_out[0](x), mod_x, block.norm2, block.ff)
        guide = after(guide, attn_y.to_out[0](y), mod_y, other.norm2, other.ff)

    for block, other in zip(model.single_transformer_blocks, theirs.single_transformer_blocks, strict=True):
        both, gate = block.norm(torch.cat([text, image], dim=1), emb=now)
        y, gate_y = other.norm(guide, emb=clean)
        attn, attn_y = block.attn, other.attn
        query = torch.cat(
            [attn.norm_q(_heads(attn.to_q(both))), attn_y.norm_q(_heads(attn_y.to_q(y)))], dim=1
        )
        key = torch.cat([attn.norm_k(_heads(attn.to_k(both))), attn_y.norm_k(_heads(attn_y.to_k(y)))], dim=1)
        t_out, x_out, y_out = _attention(query, key, _heads(attn.to_v(both), attn_y.to_v(y)), angles, mask)
        fed = block.act_mlp(block.proj_mlp(both))
        out = block.proj_out(torch.cat([torch.cat([t_out, x_out], dim=1), fed], dim=2))
        text = text + gate[:, None] * out[:, :TEXT]
        image = image + gate[:, None] * out[:, TEXT:]
        y_fed = torch.cat([y_out, other.act_mlp(other.proj_mlp(y))], dim=2)
        guide = guide + gate_y[:, None] * other.proj_out(y_fed)
    return model.proj_out(model.norm_out(image, now))


def _joint_flux2(model, theirs, arguments, guide_latents, mask):
    guidance = arguments["guidance"] * 1000
    now = model.time_guidance_embed(arguments["timestep"] * 1000, guidance)
    clean = theirs.time_guidance_embed(torch.zeros(2, dtype=torch.float64), guidance)
    angles = _angles(model, arguments)
    text = model.context_embedder(arguments["encoder_hidden_states"])
    image, guide = model.x_embedder(arguments["hidden_states"]), theirs.x_embedder(guide_latents)
    parts = [
        m[:, None].chunk(6, dim=-1)
        for m in (
            model.double_stream_modulation_txt(now),
            model.double_stream_modulation_img(now),
            theirs.double_stream_modulation_img(clean),
        )
    ]
    for block, other in zip(model.transformer_blocks, theirs.transformer_blocks, strict=True):
        attn, attn_y = block.attn, other.attn
        t = block.norm1_context(text) * (1 + parts[0][1]) + parts[0][0]
        x = block.norm1(image) * (1 + parts[1][1]) + parts[1][0]
        y = other.norm1(guide) * (1 + parts[2][1]) + parts[2][0]
        t, x, y = _attention(*_double(attn, attn_y, t, x, y), angles, mask)

        def after(hidden, out, part, norm, feed):
            hidden = hidden + part[2] * out
            return hidden + part[5] * feed(norm(hidden) * (1 + part[4]) + part[3])

        text = after(text, attn.to_add_out(t), parts[0], block.norm2_context, block.ff_context)
        image = after(image, attn.to_out[0](x), parts[1], block.norm2, block.ff)
        guide = after(guide, attn_y.to_out[0](y), parts[2], other.norm2, other.ff)

    shift, scale, gate = model.single_stream_modulation(now)[:, None].chunk(3, dim=-1)
    shift_y, scale_y, gate_y = theirs.single_stream_modulation(clean)[:, None].chunk(3, dim=-1)
    for block, other in zip(model.single_transformer_blocks, theirs.single_transformer_blocks, strict=True):
        attn, attn_y = block.attn, other.attn
        both = block.norm(torch.cat([text, image], dim=1)) * (1 + scale) + shift
        y = other.norm(guide) * (1 + scale_y) + shift_y
        widths = [attn.inner_dim] * 3 + [2 * attn.mlp_hidden_dim]
        q, k, v, fed = attn.to_qkv_mlp_proj(both).split(widths, dim=-1)
        q_y, k_y, v_y, fed_y = attn_y.to_qkv_mlp_proj(y).split(widths, dim=-1)
        query = torch.cat([attn.norm_q(_heads(q)), attn_y.norm_q(_heads(q_y))], dim=1)
        key = torch.cat([attn.norm_k(_heads(k)), attn_y.norm_k(_heads(k_y))], dim=1)
        t_out, x_out, y_out = _attention(query, key, _heads(v, v_y), angles, mask)
        joined = torch.cat([torch.cat([t_out, x_out], dim=1), attn.mlp_act_fn(fed)], dim=-1)
        out = gate * attn.to_out(joined)
        text, image = text + out[:, :TEXT], image + out[:, TEXT:]
        guide = guide + gate_y * attn_y.to_out(torch.cat([y_out, attn_y.mlp_act_fn(fed_y)], dim=-1))
    return model.proj_out(model.norm_out(image, now))


GUIDED = [
    WindowRules(),
    WindowRules(neighbourhood="cross", guide_to_text=False),
    WindowRules(image_to_guide="all", guide_to_guide="local", guide_reach=1),
]


@pytest.mark.parametrize("rules", GUIDED, ids=["paper", "no-text", "all-local"])
def test_a_guide_is_a_third_stream_of_one_joint_attention(
    model, arguments, guide_latents, raster_mask, rules
):
    joint = joint_run(model, arguments, guide_latents, raster_mask(rules, True))
    with temporarily(model, AttentionCalls()):
        ours = run(model, arguments, Windows(LAYOUT, rules, Guide(guide_latents)))
        alone = run(model, arguments, Windows(LAYOUT, rules))
    assert (ours - joint).abs().max() < 1e-12
    assert (ours - alone).abs().max() > 1e-3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_guide_text_and_image_as_in_the_joint_run(
    model, arguments, guide_latents, raster_mask, checkpointing
):
    names = ("hidden_states", "encoder_hidden_states")

    def gradients(forward):
        leaves = [arguments[name].clone().requires_grad_() for name in names]
        guide = guide_latents.clone().requires_grad_()
        out = forward({**arguments, **dict(zip(names, leaves, strict=True))}, guide)
        return torch.autograd.grad(out.square().sum(), [*leaves, guide])

    mask = raster_mask(WindowRules(), True)
    expected = gradients(lambda given, guide: joint_run(model, given, guide, mask))
    if checkpointing:
        model.enable_gradient_checkpointing()
    try:
        with temporarily(model, AttentionCalls()):
            ours = gradients(lambda given, guide: run(model, given, Windows(LAYOUT, guide=Guide(guide))))
    finally:
        model.disable_gradient_checkpointing()
    for one, other in zip(ours, expected, strict=True):
        assert other.abs().max() > 1e-4
        assert (one - other).abs().max() < 1e-10


def test_a_token_masked_adapter_acts_on_the_guide_and_on_nothing_else(
    model, arguments, guide_latents, raster_mask
):
    from peft import LoraConfig

    from uhr.models.adapters.masked import TokenMask, mask_adapter

    targets = ["to_q", "to_k", "to_v", "to_qkv_mlp_proj", "x_embedder", "to_out.0"]
    targets += ["timestep_embedder.linear_1"]
    adapted = copy.deepcopy(model)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        adapted.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    merged = copy.deepcopy(adapted)
    merged.fuse_lora()
    adapted.double()
    mask_adapter(adapted, "default", TokenMask())
    stock = run(model, arguments)
    with temporarily(adapted, AttentionCalls()):
        whole = run(adapted, arguments, Windows(LAYOUT, WindowRules(reach=2)))
        ours = run(adapted, arguments, Windows(LAYOUT, guide=Guide(guide_latents)))
    assert (whole - stock).abs().max() < 1e-12
    mask = raster_mask(WindowRules(), True)
    joint = joint_run(model, arguments, guide_latents, mask, guide_model=merged)
    unadapted = joint_run(model, arguments, guide_latents, mask)
    assert (ours - joint).abs().max() < 1e-6
    assert (unadapted - joint).abs().max() > 1e-3
