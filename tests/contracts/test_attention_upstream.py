"""The parts of diffusers and torch that windowed attention uses: a test per symbol."""

import inspect

import pytest
import torch
from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers import transformer_flux, transformer_flux2

PROCESSORS = [
    transformer_flux.FluxAttnProcessor,
    transformer_flux2.Flux2AttnProcessor,
    transformer_flux2.Flux2ParallelSelfAttnProcessor,
]


def names(function):
    return list(inspect.signature(function).parameters)


@pytest.fixture(scope="module", params=[FluxTransformer2DModel, Flux2Transformer2DModel])
def model(request):
    more = {"pooled_projection_dim": 8} if request.param is FluxTransformer2DModel else {}
    axes = (4, 14, 14) if more else (8, 8, 8, 8)
    return request.param(
        num_layers=1, num_single_layers=1, attention_head_dim=32, num_attention_heads=2, in_channels=8,
        joint_attention_dim=8, guidance_embeds=True, axes_dims_rope=axes, **more,
    )  # fmt: skip


def test_processors_take_these_arguments_in_this_order():
    flux = ["self", "attn", "hidden_states", "encoder_hidden_states", "attention_mask", "image_rotary_emb"]
    assert names(PROCESSORS[0].__call__) == flux
    assert names(PROCESSORS[1].__call__) == flux
    assert names(PROCESSORS[2].__call__) == [name for name in flux if name != "encoder_hidden_states"]
    for processor in PROCESSORS:
        assert processor._attention_backend is None
        assert processor._parallel_config is None


def test_a_stock_model_s_processors_are_exactly_these(model):
    used = {type(processor) for processor in model.attn_processors.values()}
    assert used == ({PROCESSORS[0]} if isinstance(model, FluxTransformer2DModel) else set(PROCESSORS[1:]))


def test_extra_arguments_reach_a_processor_that_names_them(model):
    seen = []
    former = dict(model.attn_processors)

    def naming(stock):
        class Names(stock):
            def __call__(self, *args, attention=None, **kwargs):
                seen.append(attention)
                return super().__call__(*args, **kwargs)

        return Names()

    model.set_attn_processor({name: naming(type(p)) for name, p in former.items()})
    axes = len(model.config.axes_dims_rope)
    more = {"pooled_projections": torch.zeros(1, 8)} if axes == 3 else {}
    with torch.no_grad():
        model(
            hidden_states=torch.zeros(1, 4, 8),
            encoder_hidden_states=torch.zeros(1, 3, 8),
            timestep=torch.zeros(1),
            guidance=torch.zeros(1),
            img_ids=torch.zeros(4, axes),
            txt_ids=torch.zeros(3, axes),
            joint_attention_kwargs={"attention": "options"},
            **more,
        )
    model.set_attn_processor(former)
    assert seen == ["options", "options"]


def test_blocks_take_these_arguments_in_this_order(model):
    double, single = model.transformer_blocks[0], model.single_transformer_blocks[0]
    streams, end = ["hidden_states", "encoder_hidden_states"], ["image_rotary_emb", "joint_attention_kwargs"]
    if isinstance(model, FluxTransformer2DModel):
        assert names(double.forward) == [*streams, "temb", *end]
        assert names(single.forward) == [*streams, "temb", *end]
    else:
        assert names(double.forward) == [*streams, "temb_mod_img", "temb_mod_txt", *end]
        assert names(single.forward)[:5] == [*streams, "temb_mod", *end]


def test_blocks_accept_a_text_of_length_0(model):
    hidden, nothing, rotary = (
        torch.randn(1, 4, 64),
        torch.zeros(1, 0, 64),
        (torch.ones(4, 32), torch.zeros(4, 32)),
    )
    double, single = model.transformer_blocks[0], model.single_transformer_blocks[0]
    with torch.no_grad():
        if isinstance(model, FluxTransformer2DModel):
            temb = torch.randn(1, 64)
            text, image = double(hidden, nothing, temb, rotary)
            after = single(image, text, temb, rotary)[1]
        else:
            temb = torch.randn(1, 64)
            mods = [m(temb) for m in (model.double_stream_modulation_img, model.double_stream_modulation_txt)]
            text, image = double(hidden, nothing, *mods, rotary)
            after = single(image, None, model.single_stream_modulation(temb), rotary)
    assert (text.shape, image.shape, after.shape) == (nothing.shape, hidden.shape, hidden.shape)


def test_the_transformers_have_the_parts_that_embed_a_guide(model):
    flux1 = isinstance(model, FluxTransformer2DModel)
    time = model.time_text_embed if flux1 else model.time_guidance_embed
    assert names(time.forward) == ["timestep", "guidance", *(["pooled_projection"] if flux1 else [])]
    assert model.x_embedder(torch.zeros(1, 4, 8)).shape == (1, 4, 64)
    expected = {
        "hidden_states",
        "encoder_hidden_states",
        "guidance",
        "img_ids",
        "txt_ids",
        "joint_attention_kwargs",
    }
    assert expected <= set(names(type(model).forward))


def test_rotary_embedding_and_dispatcher_work_on_batch_sequence_heads_width():
    x, rotary = torch.randn(1, 4, 2, 32), (torch.zeros(4, 32), torch.ones(4, 32))
    turned = apply_rotary_emb(x, rotary, sequence_dim=1)
    # cos 0 and sin 1: each adjacent pair (a, b) turns into (-b, a)
    pairs = x.unflatten(-1, (-1, 2))
    assert torch.equal(turned, torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2))
    assert {"scale", "backend", "parallel_config"} <= set(names(dispatch_attention_fn))


def test_flex_attention_takes_a_block_mask_made_of_tables():
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    expected = ["kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices"]
    assert names(BlockMask.from_kv_blocks)[:4] == expected
    assert {"BLOCK_SIZE", "mask_mod", "seq_lengths"} <= set(names(BlockMask.from_kv_blocks))
    assert "block_mask" in names(flex_attention)


def test_torch_lets_a_call_raise_its_number_of_specialisations():
    import torch._dynamo.config as config

    former = config.recompile_limit
    with config.patch(recompile_limit=former + 1):
        assert config.recompile_limit == former + 1
    assert config.recompile_limit == former
