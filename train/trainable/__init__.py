"""The part of a model that a recipe trains, such as an adapter.

A new one is a class derived from `base.Trainable`, and a line in `NAMES`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uhr.base.kinds import by_kind
from uhr.train.trainable.base import Trainable

NAMES = {
    "backbone": "uhr.train.trainable.backbone:WholeBackbone",
    "lora": "uhr.train.trainable.adapters:Lora",
    "singular-components": "uhr.train.trainable.adapters:Components",
    "token-masked-lora": "uhr.train.trainable.adapters:GuideLora",
    "vae": "uhr.train.trainable.vae:Vae",
}
"""The trainable parts by kind; any other is named by its import path, such as `mypkg.parts:Mine`."""

if TYPE_CHECKING:
    AnyTrainable = Trainable
else:
    AnyTrainable: Any = by_kind(Trainable, NAMES, "trainable part")
