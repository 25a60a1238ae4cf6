"""A tiny FLUX.1: FluxPipeline of CLIP, T5, the transformer and the VAE, in a few megabytes."""

from __future__ import annotations

from typing import Any

from uhr.models.families.tiny.draw import draw, narrow, vae_gain
from uhr.models.specs.spec import ModelSpec

TEXT_WIDTH = 32
POOLED_WIDTH = 32
VAE_CHANNELS = (8, 16, 16, 16)
"""Four levels: three halvings, the real factor 8."""

SCALING, SHIFT = 0.3611, 0.1159
"""Scale and shift of FLUX.1's VAE: model latent = (z - shift) * scaling."""


def pipeline(spec: ModelSpec, seed: int) -> Any:
    """Return the whole pipeline with random weights."""
    import torch
    from diffusers import FluxPipeline

    vae = draw(_vae(spec), "vae", seed, vae_gain(1 / SCALING))
    with torch.no_grad():
        _set_latent_statistics(vae)
    return FluxPipeline(
        scheduler=scheduler(),
        vae=vae,
        text_encoder=draw(_clip(spec), "text_encoder", seed, _text_gain),
        tokenizer=_clip_tokenizer(spec),
        text_encoder_2=draw(_t5(spec), "text_encoder_2", seed, _text_gain),
        tokenizer_2=_t5_tokenizer(spec),
        transformer=draw(_transformer(spec), "transformer", seed, _transformer_gain),
    )


def scheduler() -> Any:
    """Return the scheduler that is published with FLUX.1-dev and with FLUX.2."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )


def _transformer(spec: ModelSpec) -> Any:
    from diffusers import FluxTransformer2DModel

    head_dim = spec.transformer_config["attention_head_dim"]
    height = width = head_dim * 56 // 128 // 2 * 2  # the real 16:56:56 of 128, in even numbers
    return FluxTransformer2DModel(
        patch_size=1,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=POOLED_WIDTH,
        axes_dims_rope=(head_dim - height - width, height, width),
        **spec.transformer_config,
    )


def vae_shape(spec: ModelSpec) -> dict[str, Any]:
    """Return the configuration that the VAEs of all families share."""
    return {
        "down_block_types": ("DownEncoderBlock2D",) * len(VAE_CHANNELS),
        "up_block_types": ("UpDecoderBlock2D",) * len(VAE_CHANNELS),
        "block_out_channels": VAE_CHANNELS,
        "layers_per_block": 1,
        "latent_channels": spec.latent_channels,
        "norm_num_groups": 4,
        "sample_size": spec.native_size,
    }


def _vae(spec: ModelSpec) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        **vae_shape(spec),
        scaling_factor=SCALING,
        shift_factor=SHIFT,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _clip_tokenizer(spec: ModelSpec) -> Any:
    """CLIP's byte alphabet without merges: one token per byte, each also as the end of a word."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    return CLIPTokenizer(vocabulary, merges=[], model_max_length=spec.text_lengths["clip"])


def _clip(spec: ModelSpec) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = _clip_tokenizer(spec)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=POOLED_WIDTH,
            intermediate_size=2 * POOLED_WIDTH,
            projection_dim=POOLED_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=spec.text_lengths["clip"],
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _t5_pieces() -> list[tuple[str, float]]:
    """SentencePiece's word mark and every printable ASCII character; anything else is unknown, as in the real
    T5."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return special + [("▁", -2.0)] + [(chr(code), -3.0) for code in range(33, 127)]


def _t5_tokenizer(spec: ModelSpec) -> Any:
    from transformers import T5Tokenizer

    return T5Tokenizer(vocab=_t5_pieces(), extra_ids=0, model_max_length=spec.text_lengths["t5"])


def _t5(spec: ModelSpec) -> Any:
    from transformers import T5Config, T5EncoderModel

    config: dict[str, Any] = {
        "vocab_size": len(_t5_pieces()),
        "d_model": TEXT_WIDTH,
        "d_kv": 8,
        "d_ff": 2 * TEXT_WIDTH,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    }
    return T5EncoderModel(T5Config(**config))


COMPONENTS = {"transformer": _transformer, "vae": _vae, "text_encoder": _clip, "text_encoder_2": _t5}
"""The function that makes each module of the pipeline."""


def _transformer_gain(name: str) -> tuple[float, float]:
    # velocities of unit size, as those of unit noise and unit data are
    return (1.5, 0.0) if name == "proj_out.weight" else (1.0, 0.0)


def _text_gain(name: str) -> tuple[float, float]:
    # T5 does not scale its attention by 1/sqrt(head width): the query carries it
    return (8**-0.5, 0.0) if name.endswith("SelfAttention.q.weight") else (1.0, 0.0)


def _set_latent_statistics(vae: Any) -> None:
    """Centre the posterior's mean on the shift, and make it narrow."""
    head, channels = vae.encoder.conv_out, vae.config.latent_channels
    head.bias[:channels] += SHIFT
    narrow(head, channels)
