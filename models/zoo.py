"""The public functions of the zoo: find specs and models, and load them. Importing it loads no weights."""

from __future__ import annotations

from uhr.models.families.conditions import Prompt
from uhr.models.families.text import Embedded, TextEncoders
from uhr.models.families.tiny import make_tiny
from uhr.models.loading.model import (
    load_component,
    load_pipeline,
    load_text_encoders,
    load_transformer,
    load_vae,
    peak_memory,
    pick_device,
    pick_dtype,
)
from uhr.models.loading.opening import Model, ModelName, open_model, recognise
from uhr.models.ops.choices import ShiftPolicy
from uhr.models.specs.registry import get, names
from uhr.models.specs.spec import GuidanceKind, Licence, ModelSpec

__all__ = [
    "Embedded",
    "GuidanceKind",
    "Licence",
    "Model",
    "ModelName",
    "ModelSpec",
    "Prompt",
    "ShiftPolicy",
    "TextEncoders",
    "get",
    "load_component",
    "load_pipeline",
    "load_text_encoders",
    "load_transformer",
    "load_vae",
    "make_tiny",
    "names",
    "open_model",
    "peak_memory",
    "pick_device",
    "pick_dtype",
    "recognise",
]
