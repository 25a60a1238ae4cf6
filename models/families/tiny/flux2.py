"""A tiny FLUX.2 [klein]: Flux2KleinPipeline of Qwen3, the transformer and the VAE, in a few megabytes."""

from __future__ import annotations

from typing import Any

from uhr.models.families.tiny.draw import draw, narrow, stream, vae_gain
from uhr.models.families.tiny.flux1 import scheduler, vae_shape
from uhr.models.specs.spec import ModelSpec

TEXT_LAYERS = 28
"""The pipeline takes hidden states 9, 18 and 27."""

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""The turns of a prompt in Qwen3's chat template: the user's turn, and an answer without thinking."""


def pipeline(spec: ModelSpec, seed: int) -> Any:
    """Return the whole pipeline with random weights."""
    from diffusers import Flux2KleinPipeline

    vae = draw(_vae(spec), "vae", seed, vae_gain(1))
    _set_latent_statistics(vae, seed)
    return Flux2KleinPipeline(
        scheduler=scheduler(),
        vae=vae,
        text_encoder=draw(_qwen3(spec), "text_encoder", seed, lambda name: (1.0, 0.0)),
        tokenizer=_tokenizer(spec),
        transformer=draw(_transformer(spec), "transformer", seed, _transformer_gain),
        **spec.pipeline_config,
    )


def _transformer(spec: ModelSpec) -> Any:
    from diffusers import Flux2Transformer2DModel

    axis = spec.transformer_config["attention_head_dim"] // 4  # four equal axes, as the real 4 x 32 of 128
    return Flux2Transformer2DModel(patch_size=1, axes_dims_rope=(axis,) * 4, **spec.transformer_config)


def _vae(spec: ModelSpec) -> Any:
    from diffusers import AutoencoderKLFlux2

    return AutoencoderKLFlux2(**vae_shape(spec))


def _tokenizer(spec: ModelSpec) -> Any:
    """Qwen's byte alphabet without merges: one token per byte."""
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = {letter: i for i, letter in enumerate(bytes_to_unicode().values())}
    return Qwen2Tokenizer(
        vocabulary,
        merges=[],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL),
        chat_template=CHAT,
        model_max_length=spec.text_lengths["qwen3"],
    )


def _qwen3(spec: ModelSpec) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = _tokenizer(spec)
    width = spec.transformer_config["joint_attention_dim"] // 3
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=TEXT_LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=2 * spec.text_lengths["qwen3"],
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )


COMPONENTS = {"transformer": _transformer, "vae": _vae, "text_encoder": _qwen3}
"""The function that makes each module of the pipeline."""


def _transformer_gain(name: str) -> tuple[float, float]:
    # found by trial: velocities of unit size, as those of unit noise and unit data are, and a prompt that
    # shows (the modulation has no biases that would open its gates, and no pooled prompt goes into it)
    if name == "proj_out.weight":
        return 0.9, 0.0
    if name.startswith("time_guidance_embed") or "modulation" in name:
        return 1.5, 0.0
    if any(part in name for part in ("context_embedder", "to_v", "add_v_proj", "to_out")):
        return 3.0, 0.0
    return 1.0, 0.0


def _set_latent_statistics(vae: Any, seed: int) -> None:
    """Make the posterior narrow, and give each channel of the BatchNorm its own mean and variance, near those
    of the latents."""
    import numpy as np
    import torch

    channels = vae.config.latent_channels
    with torch.no_grad():
        narrow(vae.quant_conv, channels)
        for name, mean, spread in (("running_mean", 0.0, 0.2), ("running_var", 1.0, 0.1)):
            values = stream(f"bn.{name}", "vae", seed).standard_normal(4 * channels, dtype=np.float32)
            statistic = torch.from_numpy(np.float32(mean) + np.float32(spread) * values)
            getattr(vae.bn, name).copy_(statistic.clamp(min=0.5) if name == "running_var" else statistic)
