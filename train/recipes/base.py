"""The import path of a recipe's classes in version 0.1, kept for recipes outside this repository."""

from uhr.train.recipes.core.base import (
    Batching,
    DataUse,
    Guidance,
    Init,
    Phase,
    Recipe,
    Runtime,
    Sampling,
)

__all__ = ["Batching", "DataUse", "Guidance", "Init", "Phase", "Recipe", "Runtime", "Sampling"]
