"""FLUX.2 [klein]: 9 and 4 billion parameters, each distilled to 4 steps or as its undistilled base.

Names, licences, steps and which is distilled are from the README of black-forest-labs/flux2. Block counts,
heads and text widths are those of that repository's parameter classes as several third parties list them, all
alike; they were not checked against weights. All other values are diffusers' defaults.
"""

from __future__ import annotations

from dataclasses import replace

from uhr.models.ops.choices import ShiftPolicy
from uhr.models.specs.family import FamilySpec
from uhr.models.specs.spec import Licence, ModelSpec

FAMILY = FamilySpec(
    name="flux2",
    backbone="uhr.models.families.flux2:Flux2",
    pipeline="uhr.models.samplers.core.pipelines.families:Flux2SamplerPipeline",
    pipeline_prefix="Flux2",
    tiny="uhr.models.families.tiny.flux2",
    marker="double_stream_modulation_img.",
    chat_template=True,
)

COMPONENTS = {
    "scheduler": "diffusers:FlowMatchEulerDiscreteScheduler",
    "text_encoder": "transformers:Qwen3ForCausalLM",
    "tokenizer": "transformers:Qwen2TokenizerFast",
    "transformer": "diffusers:Flux2Transformer2DModel",
    "vae": "diffusers:AutoencoderKLFlux2",
}

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "to_qkv_mlp_proj")


def lora_target_sets(single_blocks: int) -> dict[str, tuple[str, ...]]:
    """Return the named sets for a transformer with `single_blocks` single blocks.

    The single blocks' output is named block by block: in the double blocks that suffix is a list of modules.
    """
    return {
        # the image stream of the double blocks, and the single blocks' one projection of query, key, value
        # and the MLP's input: the nearest to "attention" of FLUX.1
        "attention": _ATTENTION,
        # the same without the output of the double blocks
        "qkv": ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_qkv_mlp_proj"),
        # the text stream, the feed-forwards and the single blocks' output as well
        "all-linear": (
            *(f"attn.{name}" for name in _ATTENTION),
            "attn.add_q_proj",
            "attn.add_k_proj",
            "attn.add_v_proj",
            "attn.to_add_out",
            "ff.linear_in",
            "ff.linear_out",
            "ff_context.linear_in",
            "ff_context.linear_out",
            *(f"single_transformer_blocks.{i}.attn.to_out" for i in range(single_blocks)),
        ),
    }


_QWEN3 = {
    "vocab_size": 151936,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 32,
    "norm_num_groups": 32,
    "sample_size": 1024,
}
CONFIGS_9B = {
    # Qwen3-8B
    "text_encoder": {
        **_QWEN3,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "tie_word_embeddings": False,
    },
    "vae": _VAE,
}
CONFIGS_4B = {
    # Qwen3-4B
    "text_encoder": {
        **_QWEN3,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "tie_word_embeddings": True,
    },
    "vae": _VAE,
}

_9B = {
    "num_layers": 8,
    "num_single_layers": 24,
    "num_attention_heads": 32,
    "attention_head_dim": 128,
    "in_channels": 128,
    "joint_attention_dim": 12288,
    "guidance_embeds": False,
}
_4B = {
    **_9B,
    "num_layers": 5,
    "num_single_layers": 20,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
}

FLUX2_KLEIN_9B = ModelSpec(
    name="flux2-klein-9b",
    family=FAMILY.name,
    summary="FLUX.2 [klein] 9B, distilled to 4 steps",
    pipeline_class="Flux2KleinPipeline",
    pipeline_config={"is_distilled": True},
    components=COMPONENTS,
    transformer_config=_9B,
    native_size=1024,
    guidance="none",
    text_lengths={"qwen3": 512},
    double_block="Flux2TransformerBlock",
    single_block="Flux2SingleTransformerBlock",
    lora_target_sets=lora_target_sets(24),
    licence=Licence(
        id="other",
        name="flux-non-commercial-license",
        url="https://huggingface.co/black-forest-labs/FLUX.2-klein-9B/blob/main/LICENSE.md",
        commercial=False,
    ),
    hub_id="black-forest-labs/FLUX.2-klein-9B",
    shift=ShiftPolicy.DYNAMIC,
    steps=4,
    guidance_scale=None,
    latent_channels=32,
    notes=(
        "the hub requires accepting the licence first: open the model's page, then `hf auth login`",
        "block counts and widths are from third-party listings, not checked against weights",
    ),
    configs=CONFIGS_9B,
)

FLUX2_KLEIN_BASE_9B = replace(
    FLUX2_KLEIN_9B,
    name="flux2-klein-base-9b",
    summary="FLUX.2 [klein] base 9B, undistilled: the one to train adapters on",
    pipeline_config={"is_distilled": False},
    guidance="cfg",
    hub_id="black-forest-labs/FLUX.2-klein-base-9B",
    steps=50,
    guidance_scale=4.0,
)

_APACHE = Licence(
    id="apache-2.0",
    name="Apache-2.0",
    url="https://huggingface.co/black-forest-labs/FLUX.2-klein-4B",
    commercial=True,
)
_UNCHECKED = FLUX2_KLEIN_9B.notes[1:]

FLUX2_KLEIN_4B = replace(
    FLUX2_KLEIN_9B,
    name="flux2-klein-4b",
    summary="FLUX.2 [klein] 4B, distilled to 4 steps",
    transformer_config=_4B,
    configs=CONFIGS_4B,
    lora_target_sets=lora_target_sets(20),
    licence=_APACHE,
    hub_id="black-forest-labs/FLUX.2-klein-4B",
    notes=_UNCHECKED,
)

FLUX2_KLEIN_BASE_4B = replace(
    FLUX2_KLEIN_BASE_9B,
    name="flux2-klein-base-4b",
    summary="FLUX.2 [klein] base 4B, undistilled: the one to train adapters on",
    transformer_config=_4B,
    configs=CONFIGS_4B,
    lora_target_sets=lora_target_sets(20),
    licence=_APACHE,
    hub_id="black-forest-labs/FLUX.2-klein-base-4B",
    notes=_UNCHECKED,
)

SPECS = (FLUX2_KLEIN_9B, FLUX2_KLEIN_BASE_9B, FLUX2_KLEIN_4B, FLUX2_KLEIN_BASE_4B)
