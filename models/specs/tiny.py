"""Tiny backbones: the real classes, the real VAE factor and text lengths, random weights, a few megabytes.

They use the same loading code, adapters and samplers as a real checkpoint. Their images show nothing.
"""

from __future__ import annotations

from dataclasses import replace

from uhr.models.specs.flux1 import FLUX1_DEV
from uhr.models.specs.flux2 import FLUX2_KLEIN_4B, lora_target_sets
from uhr.models.specs.spec import Licence

_LICENCE = Licence(
    id="apache-2.0", name="Apache-2.0", url="https://www.apache.org/licenses/LICENSE-2.0", commercial=True
)
_NOTES = ("random weights: its images show nothing",)

TINY_FLUX1 = replace(
    FLUX1_DEV,
    name="tiny-flux1",
    summary="FLUX.1's classes at 0.5M parameters, random weights: for tests, demos and dry runs",
    transformer_config={
        "num_layers": 2,
        "num_single_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "in_channels": 64,
        "guidance_embeds": True,
    },
    native_size=128,
    configs={},
    licence=_LICENCE,
    hub_id=None,
    notes=_NOTES,
)

TINY_FLUX2 = replace(
    FLUX2_KLEIN_4B,
    name="tiny-flux2",
    summary="FLUX.2 [klein]'s classes at 1M parameters, random weights: for tests, demos and dry runs",
    transformer_config={
        "num_layers": 2,
        "num_single_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "in_channels": 128,
        "joint_attention_dim": 96,
        "guidance_embeds": False,
    },
    lora_target_sets=lora_target_sets(2),
    native_size=128,
    configs={},
    licence=_LICENCE,
    hub_id=None,
    notes=_NOTES,
)

TINY_FLUX2_BASE = replace(
    TINY_FLUX2,
    name="tiny-flux2-base",
    summary="the same weights as an undistilled model, guided by two passes",
    pipeline_config={"is_distilled": False},
    guidance="cfg",
    guidance_scale=4.0,
)

SPECS = (TINY_FLUX1, TINY_FLUX2, TINY_FLUX2_BASE)
