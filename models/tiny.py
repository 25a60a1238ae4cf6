"""Makes a tiny checkpoint: a diffusers folder of the real classes with seeded random weights.

The weights are drawn so that signals neither die nor explode: pictures have contrast, and prompt, guidance
and seed each change them. The VAE's latents have the statistics that the real scaling factor expects.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uhr.base.errors import UserError, unknown
from uhr.models.registry import SPECS, get
from uhr.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch

TEXT_WIDTH = 32
POOLED_WIDTH = 32
VAE_CHANNELS = (8, 16, 16, 16)
"""Four levels: three halvings, the real factor 8."""

SCALING, SHIFT = 0.3611, 0.1159
"""Scale and shift of FLUX.1's VAE: model latent = (z - shift) * scaling."""


def make_tiny(spec_name: str, folder: str | Path, seed: int = 0) -> Path:
    """Write a tiny checkpoint that `FluxPipeline.from_pretrained` loads; the folder's path.

    The same seed gives the same bytes. A folder that holds anything is refused.
    """
    spec = get(spec_name)
    if not spec.tiny:
        raise unknown("tiny spec", spec_name, [name for name, s in SPECS.items() if s.tiny])
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty", "name a new folder")
    assert spec.family == "flux1"
    import torch

    from uhr.models.quiet import quiet_loading

    # the classes draw initial weights of their own: keep that off the caller's generator
    with torch.random.fork_rng(devices=[]), quiet_loading():
        _pipeline(spec, seed).save_pretrained(folder)
    return folder


def _pipeline(spec: ModelSpec, seed: int) -> Any:
    from diffusers import FluxPipeline

    return FluxPipeline(
        scheduler=_scheduler(),
        vae=_draw(_vae(spec), "vae", seed, _vae_gain),
        text_encoder=_draw(_clip(spec), "text_encoder", seed, _text_gain),
        tokenizer=_clip_tokenizer(spec),
        text_encoder_2=_draw(_t5(), "text_encoder_2", seed, _text_gain),
        tokenizer_2=_t5_tokenizer(spec),
        transformer=_draw(_transformer(spec), "transformer", seed, _transformer_gain),
    )


def _scheduler() -> Any:
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


def _vae(spec: ModelSpec) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(VAE_CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(VAE_CHANNELS),
        block_out_channels=VAE_CHANNELS,
        layers_per_block=1,
        latent_channels=spec.latent_channels,
        norm_num_groups=4,
        sample_size=spec.native_size,
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


def _t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=len(_t5_pieces()),
            d_model=TEXT_WIDTH,
            d_kv=8,
            d_ff=2 * TEXT_WIDTH,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
    )


Gain = Callable[[str], tuple[float, float]]
"""A parameter's name -> (factor on its standard deviation 1/sqrt(fan in), mean)."""


def _transformer_gain(name: str) -> tuple[float, float]:
    # velocities of unit size, as those of unit noise and unit data are
    return (1.5, 0.0) if name == "proj_out.weight" else (1.0, 0.0)


def _text_gain(name: str) -> tuple[float, float]:
    # T5 does not scale its attention by 1/sqrt(head width): the query carries it
    return (8**-0.5, 0.0) if name.endswith("SelfAttention.q.weight") else (1.0, 0.0)


def _vae_gain(name: str) -> tuple[float, float]:
    return {
        # mean channels spread by 1/scaling; the features before are normalised and pass a SiLU (rms about
        # 0.6)
        "encoder.conv_out.weight": (1 / SCALING / 0.6, 0.0),
        "decoder.conv_out.weight": (0.8, 0.0),
    }.get(name, (1.0, 0.0))


def _draw(module: Any, component: str, seed: int, gain: Gain) -> Any:
    """Fill every parameter from its own stream, named by seed, component and parameter: no order matters."""
    import torch

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(_values(name, tuple(parameter.shape), component, seed, gain))
        if component == "vae":
            _set_latent_statistics(module)
    return module.eval()


def _values(name: str, shape: tuple[int, ...], component: str, seed: int, gain: Gain) -> torch.Tensor:
    """numpy's generator rather than torch's: its stream is the same on every processor."""
    import numpy as np
    import torch

    stream = np.random.default_rng([seed, zlib.crc32(f"{component}.{name}".encode())])
    values = stream.standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:
        scale, mean = (0.02, 1.0) if "norm" in name and name.endswith("weight") else (0.02, 0.0)
    else:
        embedding = any(
            word in name for word in ("embedding.weight", "shared", "embed_tokens", "relative_attention")
        )
        fan_in = 1 if embedding else math.prod(shape[1:])
        factor, mean = gain(name)
        scale = factor / math.sqrt(fan_in)
    return torch.from_numpy(values * np.float32(scale) + np.float32(mean))


def _set_latent_statistics(vae: Any) -> None:
    """Posterior mean centred on the shift, and a narrow posterior (log variance about -6) as trained VAEs
    have."""
    channels = vae.config.latent_channels
    head = vae.encoder.conv_out
    head.bias[:channels] += SHIFT
    head.weight[channels:] *= 0.05
    head.bias[channels:] -= 6.0
