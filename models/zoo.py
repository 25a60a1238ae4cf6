"""The zoo's front door: specs by name, models by path, and everything that loads one. Importing it loads
nothing."""

from __future__ import annotations

from uhr.models.loading import (
    load_component,
    load_pipeline,
    load_text_encoders,
    load_transformer,
    load_vae,
    pick_device,
    pick_dtype,
    weights_hash,
)
from uhr.models.opening import Model, ModelName, open_model, recognise
from uhr.models.registry import get, names
from uhr.models.spec import GuidanceKind, Licence, ModelSpec, ShiftPolicy
from uhr.models.text import (
    ChatEmbeds,
    ChatEncoder,
    PromptEmbeds,
    TextEncoders,
    encode_chat,
    encode_prompts,
)
from uhr.models.tiny import make_tiny

__all__ = [
    "ChatEmbeds",
    "ChatEncoder",
    "GuidanceKind",
    "Licence",
    "Model",
    "ModelName",
    "ModelSpec",
    "PromptEmbeds",
    "ShiftPolicy",
    "TextEncoders",
    "encode_chat",
    "encode_prompts",
    "get",
    "load_component",
    "load_pipeline",
    "load_text_encoders",
    "load_transformer",
    "load_vae",
    "make_tiny",
    "names",
    "open_model",
    "pick_device",
    "pick_dtype",
    "recognise",
    "weights_hash",
]
