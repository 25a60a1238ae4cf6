"""A recipe that trains a model's VAE on pixels."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from uhr.base.errors import UserError
from uhr.models.specs.spec import ModelSpec
from uhr.models.surgery.base import from_record
from uhr.train.objectives.vae import AnyVaeObjective
from uhr.train.recipes.core.base import DataUseBase, PhaseBase, RecipeBase
from uhr.train.recipes.core.validation import MeasuredRows, ValidationBase


class VaePhase(PhaseBase):
    """One phase of the training of a VAE.

    resolution: px, as the pixels were encoded.
    objective: one of `train.objectives.vae`.
    """

    data: tuple[DataUseBase, ...] = Field((DataUseBase(),), min_length=1)
    objective: AnyVaeObjective


class VaeValidation(ValidationBase):
    """loss: held-out loss and PSNR of reconstructions, in the log and in the metrics of checkpoints.
    images: images beside their reconstructions, as PNG files in `validation/` of the run.

    None measures or writes nothing.
    """

    loss: MeasuredRows | None = None
    images: MeasuredRows | None = None


class VaeRecipe(RecipeBase):
    """Everything about the training of a VAE except model and data.

    surgeries: those of the VAE. One that the loaded VAE has already is not applied again.
    latents: "sample" decodes a draw from the encoder's distribution each time, "mean" does not.
    runtime: with precision bfloat16 the weights are float32, and computed with under autocast.
    """

    phases: tuple[VaePhase, ...] = Field(min_length=1)
    latents: Literal["sample", "mean"]
    validation: VaeValidation = VaeValidation()

    @model_validator(mode="after")
    def _a_vae(self) -> VaeRecipe:
        if self.trainable.component != "vae":
            raise ValueError(
                f"trainable part '{self.trainable.kind}' is not a part of a VAE: set kind to vae"
            )
        if self.init.use != "continue":
            raise ValueError("the weights of a VAE are trained further: set init.use to continue")
        return self

    def check(self, spec: ModelSpec) -> None:
        if spec.family != self.family:
            what = f"recipe {self.name} is for {self.family}, and {spec.name} is of family {spec.family}"
            raise UserError(what, "take a model of that family")
        if not spec.components["vae"].endswith(":AutoencoderKL"):
            what = f"the VAE of {spec.name} normalises latents by statistics of its own"
            raise UserError(what, "take a model of the family flux1")
        for surgery in from_record(self.surgeries, f"recipe {self.name}: surgeries"):
            if not all(place.startswith("vae.") for place in surgery.edits):
                raise UserError(f"recipe {self.name}: '{surgery.name}' edits no VAE", "leave it out")
        off = {"shard": "replicate", "quantize": None, "offload": None, "compile": False}
        for name, value in off.items():
            if getattr(self.runtime, name) != value:
                what = f"runtime.{name} is for backbones, and recipe {self.name} trains a VAE"
                raise UserError(
                    what, f"--set runtime.{name}={'null' if value is None else str(value).lower()}"
                )
        self.trainable.check(spec)

    def pinned(self) -> VaeRecipe:
        """The recipe with the hashes of all files that its objectives read.

        Raises UserError if one of them is missing or invalid.
        """
        phases = []
        for phase in self.phases:
            where = f"phases.{phase.name}.objective"
            phase.objective.check(where)
            phases.append(phase.model_copy(update={"objective": phase.objective.pinned(where)}))
        return self.model_copy(update={"phases": tuple(phases)})

    def missing(self) -> list[str]:
        """What a run needs besides model and data, one sentence each, for a plan."""
        found = (phase.objective.missing(f"phases.{phase.name}.objective") for phase in self.phases)
        return [sentence for sentences in found for sentence in sentences]

    def published(self) -> VaeRecipe:
        """The recipe without paths of this machine."""
        phases = [p.model_copy(update={"objective": p.objective.published()}) for p in self.phases]
        return self.model_copy(update={"phases": tuple(phases)})

    def notes(self, spec: ModelSpec) -> list[str]:
        return list(dict.fromkeys(note for phase in self.phases for note in phase.objective.notes()))
