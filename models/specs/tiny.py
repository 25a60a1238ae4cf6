"""Tiny backbones: the real classes, the real VAE factor and text lengths, random weights, a few megabytes.

Everything that a real checkpoint goes through, they go through as well: the same loading code, adapters,
samplers. What they paint is no picture of anything.
"""

from __future__ import annotations

from dataclasses import replace

from uhr.models.spec import Licence
from uhr.models.specs.flux1 import FLUX1_DEV

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
    licence=Licence(
        id="apache-2.0", name="Apache-2.0", url="https://www.apache.org/licenses/LICENSE-2.0", commercial=True
    ),
    hub_id=None,
    notes=("random weights: what it paints is no picture of anything",),
)

SPECS = (TINY_FLUX1,)
