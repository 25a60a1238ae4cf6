"""What is known of a family of backbones, which are called in the same way, before its code is imported."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FamilySpec:
    """A family: its name, where its code is, and how its files are recognised.

    The code is named by import paths, and imported only when it is needed.
    """

    name: str
    """The `family` of its specs and of its backbone."""

    backbone: str
    """`package.module:Class` of the `families.base.Backbone` that calls its transformers."""

    pipeline: str
    """`package.module:Class` of the base of its sampler pipelines: diffusers' stock pipeline with a sampler's
    `__call__`."""

    pipeline_prefix: str
    """What the class names of its pipelines begin with: "Flux2" in `Flux2EulerPipeline`."""

    tiny: str
    """The module that makes its tiny checkpoints: `pipeline(spec, seed)` and `COMPONENTS`."""

    marker: str = ""
    """The first characters of a weight's name that no other family has, in BFL's and diffusers' files. A file
    without any family's marker belongs to the family whose marker is empty."""

    chat_template: bool = False
    """Whether its tokenizer needs a chat template."""
