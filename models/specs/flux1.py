"""FLUX.1: the guidance-distilled dev and the step-distilled schnell, 12 billion parameters each."""

from __future__ import annotations

from uhr.models.ops.choices import ShiftPolicy
from uhr.models.specs.family import FamilySpec
from uhr.models.specs.spec import Licence, ModelSpec

FAMILY = FamilySpec(
    name="flux1",
    backbone="uhr.models.families.flux1:Flux1",
    pipeline="uhr.models.samplers.core.pipelines.families:Flux1SamplerPipeline",
    pipeline_prefix="",
    tiny="uhr.models.families.tiny.flux1",
)

COMPONENTS = {
    "scheduler": "diffusers:FlowMatchEulerDiscreteScheduler",
    "text_encoder": "transformers:CLIPTextModel",
    "text_encoder_2": "transformers:T5EncoderModel",
    "tokenizer": "transformers:CLIPTokenizer",
    "tokenizer_2": "transformers:T5TokenizerFast",
    "transformer": "diffusers:FluxTransformer2DModel",
    "vae": "diffusers:AutoencoderKL",
}

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
LORA_TARGET_SETS = {
    # URAE's: image-stream q, k, v, out of the double blocks, q, k, v of the single ones (190 linears of dev)
    "attention": _ATTENTION,
    # UltraGen's paper
    "qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    # diffusers' own FLUX trainer: also the text stream and both feed-forwards of the double blocks
    "all-linear": (
        *(f"attn.{name}" for name in _ATTENTION),
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
        "ff.net.0.proj",
        "ff.net.2",
        "ff_context.net.0.proj",
        "ff_context.net.2",
    ),
}

CONFIGS = {
    "text_encoder": {
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "projection_dim": 768,
    },
    "text_encoder_2": {
        "vocab_size": 32128,
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    },
    "vae": {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "latent_channels": 16,
        "norm_num_groups": 32,
        "sample_size": 1024,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
}
"""The configurations of CLIP-L, T5-XXL and the VAE, which both models have."""

_GEOMETRY = {
    "num_layers": 19,
    "num_single_layers": 38,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "in_channels": 64,
}

FLUX1_DEV = ModelSpec(
    name="flux1-dev",
    family=FAMILY.name,
    summary="FLUX.1 [dev], 12B, guidance-distilled",
    pipeline_class="FluxPipeline",
    components=COMPONENTS,
    transformer_config={**_GEOMETRY, "guidance_embeds": True},
    native_size=1024,
    guidance="embedded",
    text_lengths={"t5": 512, "clip": 77},
    double_block="FluxTransformerBlock",
    single_block="FluxSingleTransformerBlock",
    lora_target_sets=LORA_TARGET_SETS,
    licence=Licence(
        id="other",
        name="flux-1-dev-non-commercial-license",
        url="https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
        commercial=False,
    ),
    hub_id="black-forest-labs/FLUX.1-dev",
    shift=ShiftPolicy.DYNAMIC,
    steps=28,
    guidance_scale=3.5,
    configs=CONFIGS,
    notes=("the hub requires accepting the licence first: open the model's page, then `hf auth login`",),
)

FLUX1_SCHNELL = ModelSpec(
    name="flux1-schnell",
    family=FAMILY.name,
    summary="FLUX.1 [schnell], 12B, distilled to 4 steps",
    pipeline_class="FluxPipeline",
    components=COMPONENTS,
    transformer_config={**_GEOMETRY, "guidance_embeds": False},
    native_size=1024,
    guidance="none",
    text_lengths={"t5": 256, "clip": 77},
    double_block="FluxTransformerBlock",
    single_block="FluxSingleTransformerBlock",
    lora_target_sets=LORA_TARGET_SETS,
    licence=Licence(
        id="apache-2.0",
        name="Apache-2.0",
        url="https://huggingface.co/black-forest-labs/FLUX.1-schnell",
        commercial=True,
    ),
    hub_id="black-forest-labs/FLUX.1-schnell",
    shift=ShiftPolicy.NONE,
    steps=4,
    guidance_scale=None,
    configs=CONFIGS,
)

SPECS = (FLUX1_DEV, FLUX1_SCHNELL)
