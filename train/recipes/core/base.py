"""A recipe: everything that turns encoded data and a model into an adapter, as one declarative tree.

Every value of the tree is read by some line of the trainer; `sources` says where each one comes from.
"""

from __future__ import annotations

import math
import re
import shlex
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from uhr.base.config import Config
from uhr.base.errors import UserError
from uhr.base.kinds import Kind
from uhr.models.specs.spec import GuidanceKind, ModelSpec
from uhr.models.surgery.base import from_record
from uhr.train.objectives import AnyObjective
from uhr.train.objectives.base import Objective
from uhr.train.optimisers import AnyOptimiser
from uhr.train.recipes.core.runtime import Runtime, Sampling
from uhr.train.recipes.core.validation import Validation, ValidationBase
from uhr.train.recipes.core.windows import CallAttention, GuideWindows, ProportionalAttention
from uhr.train.timesteps import Timesteps
from uhr.train.trainable import AnyTrainable


class Guidance(Config):
    """The guidance input of the model in training. There is no default: a wrong value would train without an
    error.

    embedded: the model has a guidance input, which gets `scale` (1.0 means unguided).
    none: the model has no such input. cfg: it has no such input, and sampling runs it with and without
    the prompt.
    """

    kind: GuidanceKind
    scale: float | None = None

    @model_validator(mode="after")
    def _scale_where_there_is_an_input(self) -> Guidance:
        if (self.kind == "embedded") != (self.scale is not None):
            raise ValueError("scale belongs to kind 'embedded', and only to it")
        return self


class Batching(Config):
    """The batch size: `size` samples per optimiser step, `micro` of them in the model at once.

    remainder: "short" or "drop", see `data.order.BucketPlan`.
    """

    size: int = Field(gt=0)
    micro: int = Field(gt=0)
    remainder: Literal["short", "drop"]


class Init(Config):
    """How a run begins with trained weights, which `--init` names.

    use: "continue" trains them further with a new optimiser; "fuse" adds them to the frozen weights and
        trains a new part on top. Of several, all but the last are fused.
    after: the recipe that trains these weights; without `--init` the run is refused. None: `--init` is
        optional.
    """

    use: Literal["continue", "fuse"] = "continue"
    after: str | None = None


class DataUseBase(Config):
    """How a phase uses one data set of the run.

    data: its name, as in `--data NAME=DIR`.
    weight: share of the phase's batches, in proportion to those of its other data sets. None: every row is
        used `repeats` times while the others are used as often as they say. All or none of a phase have one.
    where: SQL condition on curated columns, such as `artimuse_rank < 0.05`; None is all rows.
    lowest: share of these rows, by the lowest values of a curated column: `{flat_fraction: 0.5}` is the less
        flat half. Rows without a value are left out, and equal values are in the order of sample ids.
    resolution: px, as the data was encoded; None is that of the phase.
    loss_weight: factor of their loss.
    """

    data: str = "main"
    weight: float | None = Field(None, gt=0)
    repeats: int = Field(1, gt=0)
    where: str | None = None
    lowest: dict[str, float] = Field(default_factory=dict, max_length=1)
    resolution: int | None = Field(None, gt=0)
    loss_weight: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _one_measure(self) -> Self:
        if self.weight is not None and self.repeats != 1:
            raise ValueError("weight is a share of batches already: leave out repeats")
        if any(not 0 < share <= 1 for share in self.lowest.values()):
            raise ValueError("lowest is a share of the rows, more than 0 and at most 1")
        return self


class DataUse(DataUseBase):
    """How a phase that trains a backbone uses one data set of the run.

    band: noise levels [low, high] of these samples; None is that of the phase's `timesteps`.
    objective: of these samples; None is the phase's. With `distillation` they are a preservation set: the
        model is kept where it is on them.
    """

    band: tuple[float, float] | None = None
    objective: AnyObjective | None = None


class PhaseBase(Config):
    """One phase of a training run.

    data: the data sets that it mixes.
    resolution: px, as the data was encoded; None is the model's native size.
    steps: optimiser steps. objective: what is minimised, with its parameters.
    lr: learning rate after `warmup` steps, over which it rises linearly from 0.
    schedule: of the steps after that. constant: lr. cosine: lr (1 + cos(pi p)) / 2. linear: lr (1 - p), with
        p from 0 to 1 at the end of the phase, which the last step stays just short of.
    """

    name: str
    data: tuple[DataUseBase, ...] = Field(min_length=1)
    resolution: int | None = Field(None, gt=0)
    steps: int = Field(gt=0)
    lr: float = Field(gt=0)
    warmup: int = Field(ge=0)
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    objective: Kind

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        if len({use.weight is None for use in self.data}) > 1:
            raise ValueError("all data sets of a phase have a weight, or none has")
        if self.schedule != "constant" and self.warmup >= self.steps:
            raise ValueError(f"warmup {self.warmup} leaves no step for the schedule: it must be below steps")
        return self

    def lr_at(self, step: int) -> float:
        """The learning rate of the phase's step `step`, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.lr
        progress = (step - self.warmup) / (self.steps - self.warmup)
        if self.schedule == "linear":
            return self.lr * (1 - progress)
        return self.lr * (1 + math.cos(math.pi * progress)) / 2


class Phase(PhaseBase):
    """One phase of the training of a backbone.

    objective: one of `train.objectives`. timesteps: the noise levels.
    """

    data: tuple[DataUse, ...] = Field((DataUse(),), min_length=1)
    objective: AnyObjective
    timesteps: Timesteps

    @model_validator(mode="after")
    def _bands(self) -> Self:
        for use in self.data:
            self.timesteps_of(use)
        return self

    def objective_of(self, use: DataUse) -> Objective:
        """The objective of the samples of one of the phase's data sets."""
        return use.objective or self.objective

    def timesteps_of(self, use: DataUse) -> Timesteps:
        """The noise levels of the samples of one of the phase's data sets."""
        return self.timesteps if use.band is None else self.timesteps.with_band(use.band)


class RecipeBase(Config):
    """Everything about a training run except model and data, whatever is trained.

    family: that of `ModelSpec`. surgeries: those of the component that is trained, as `models.surgery.record`
    writes them; adapters are not among them.
    trainable: the part that is trained (`train.trainable`); the rest is frozen.
    init: what becomes of trained weights that a run begins with.
    clip: maximum norm of the gradient.
    on_nonfinite: what becomes of a step whose loss or gradient is not finite. stop: the run ends with an
        error. skip:N: it changes neither weights, optimiser nor average, at most N times in a row; the data
        order and the schedule go on.
    ema: decay per step of the averaged part, after a warm-up (`average.decay_at`); None averages nothing.
    validation: what is measured during the run.
    sources: where each value comes from, by dotted path. origin: the recipe's values before they were
    changed.
    """

    name: str
    about: str
    family: str
    surgeries: tuple[dict[str, Any], ...] = ()
    trainable: AnyTrainable
    init: Init = Init()
    phases: tuple[PhaseBase, ...] = Field(min_length=1)
    optimiser: AnyOptimiser
    clip: float = Field(gt=0)
    on_nonfinite: str = "stop"
    batch: Batching
    ema: float | None = Field(None, gt=0, lt=1)
    seed: int = Field(ge=0)
    sampling: Sampling = Sampling()
    validation: ValidationBase = ValidationBase()
    runtime: Runtime
    sources: Mapping[str, str] = Field(default={}, exclude=True)
    origin: Mapping[str, Any] | None = Field(default=None, exclude=True)

    @field_validator("on_nonfinite")
    @classmethod
    def _stop_or_number(cls, value: str) -> str:
        if not re.fullmatch(r"stop|skip:[1-9][0-9]*", value):
            raise ValueError("is 'stop' or 'skip:N', with N from 1")
        return value

    @field_validator("surgeries")
    @classmethod
    def _known_surgeries(cls, value: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        from_record(value)
        return value

    @abstractmethod
    def check(self, spec: ModelSpec) -> None:
        """Raise UserError if this recipe does not fit the model."""

    @abstractmethod
    def notes(self, spec: ModelSpec) -> list[str]:
        """What is unusual about training this model, and no error."""

    @property
    def steps(self) -> int:
        """Number of optimiser steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    @property
    def may_skip(self) -> int:
        """How many steps in a row may be skipped because they are not finite."""
        return 0 if self.on_nonfinite == "stop" else int(self.on_nonfinite.removeprefix("skip:"))

    @property
    def data_names(self) -> list[str]:
        """The names of the data sets that the recipe uses, held-out ones included."""
        names = [use.data for phase in self.phases for use in phase.data]
        names += [rows.data for rows in self.validation.measured]
        return list(dict.fromkeys(names))

    def phase_of(self, step: int) -> tuple[int, int]:
        """The phase of the run's step `step`, and the step within the phase; all counted from 0."""
        for index, phase in enumerate(self.phases):
            if step < phase.steps:
                return index, step
            step -= phase.steps
        raise AssertionError("past the last phase")

    def done_by_phase(self, step: int) -> list[int]:
        """How many of the first `step` steps of the run belong to each phase."""
        done = []
        for phase in self.phases:
            done.append(min(step, phase.steps))
            step -= done[-1]
        return done

    def source(self, path: str) -> str | None:
        """The source of the value at a dotted path: that of the path itself, or of the nearest parent with
        one.
        """
        parts = [part for part in path.split(".") if not part.isdigit()]
        while parts:
            if ".".join(parts) in self.sources:
                return self.sources[".".join(parts)]
            parts.pop()
        return None


class Recipe(RecipeBase):
    """Everything about the training of a backbone except model and data.

    windows: windowed attention with a guide, as UltraGen has it; None is attention to all tokens.
    proportional: sharpen attention to all tokens by their number, as URAE's samplers do
        (`models.attention.proportional`).
    latents: "sample" draws from the VAE's distribution each time that an image is used, "mean" does not.
    captions: share of each caption column, as encoded; a row that lacks some draws from the others, and one
    that lacks all gets its first caption, as every row does if no share is given.
    caption_dropout: share of samples that train with the empty caption.
    """

    guidance: Guidance
    windows: GuideWindows | None = None
    proportional: bool = False
    phases: tuple[Phase, ...] = Field(min_length=1)
    latents: Literal["sample", "mean"]
    captions: dict[str, float] = Field(default_factory=dict)
    caption_dropout: float = Field(ge=0, le=1)
    validation: Validation = Validation()

    @field_validator("captions")
    @classmethod
    def _shares(cls, value: dict[str, float]) -> dict[str, float]:
        if value and (min(value.values()) < 0 or sum(value.values()) <= 0):
            raise ValueError("shares are not negative, and one is more than 0")
        return value

    @model_validator(mode="before")
    @classmethod
    def _old_keys(cls, tree: Any) -> Any:
        """Read `adapter` of earlier versions, which was always a LoRA, as changes to `trainable`."""
        if not isinstance(tree, Mapping) or not isinstance(tree.get("adapter"), Mapping):
            return tree
        trainable = tree.get("trainable")
        base = dict(trainable) if isinstance(trainable, Mapping) else {"kind": "lora"}
        left = {key: value for key, value in tree.items() if key != "adapter"}
        return {**left, "trainable": {**base, **tree["adapter"]}}

    @model_validator(mode="after")
    def _a_backbone(self) -> Recipe:
        if self.trainable.component != "transformer":
            raise ValueError("the VAE is trained by recipes of its own, such as vae-f16")
        return self

    @property
    def uses_teacher(self) -> bool:
        """Whether an objective of the recipe needs the model before training."""
        return any(phase.objective_of(use).uses_teacher for phase in self.phases for use in phase.data)

    @property
    def second_model(self) -> bool:
        """Whether the model before training is a second, frozen copy."""
        return self.uses_teacher and not self.trainable.removable

    def check(self, spec: ModelSpec) -> None:
        """Raise UserError if this recipe does not fit the model."""
        # what no change of other values can repair comes first
        for phase in self.phases:
            for use in phase.data:
                phase.objective_of(use).check(spec, self.guidance.scale)
        fix = " ".join(f"--set {shlex.quote(change)}" for change in self.changes_for(spec))
        if spec.family != self.family:
            what = f"recipe {self.name} is for {self.family}, and {spec.name} is of family {spec.family}"
            raise UserError(what, f"take another model, or change the recipe: {fix}")
        if spec.guidance != self.guidance.kind:
            what = f"recipe {self.name} trains with guidance '{self.guidance.kind}', and {spec.name} takes"
            raise UserError(f"{what} '{spec.guidance}'", fix)
        for surgery in from_record(self.surgeries, f"recipe {self.name}: surgeries"):
            if surgery.adapts:
                raise UserError(
                    f"recipe {self.name}: '{surgery.name}' is in surgeries, where it would not be trained",
                    "name it as `trainable: {kind: ...}`",
                )
        self._check_memory()
        self.trainable.check(spec)
        self._check_attention()

    def attention(self, spec: ModelSpec) -> CallAttention | None:
        """The attention of the model's calls; None is the backbone's own."""
        if self.windows is not None:
            return self.windows.for_model(spec)
        return ProportionalAttention() if self.proportional else None

    def _check_attention(self) -> None:
        if self.windows is not None and self.proportional:
            what = (
                f"recipe {self.name}: windowed attention has as many keys at any size, and is not sharpened"
            )
            raise UserError(what, "--set proportional=false")
        if self.trainable.needs_guide and self.windows is None:
            what = f"recipe {self.name}: its adapter acts on a guide's tokens, and there is no guide"
            raise UserError(what, "--set windows={ratio: 4}")
        from uhr.models.samplers import find_sampler

        name = self.sampling.sampler
        if self.trainable.needs_guide and not find_sampler(name).guide_tokens:
            what = f"recipe {self.name}: its adapter acts on a guide's tokens, and sampler {name} has none"
            raise UserError(
                f"{what}, so that its card and commands would be wrong", "--set sampling.sampler=ultragen"
            )

    def _check_memory(self) -> None:
        """Raise UserError if the trained part is in weights that are quantised or on the host."""
        runtime, part = self.runtime, self.trainable
        if runtime.quantize is not None and not part.quantised_base:
            what = (
                f"runtime.quantize is {runtime.quantize}, and trainable part '{part.kind}' needs the weights"
            )
            raise UserError(f"{what} themselves", "--set runtime.quantize=null, or --set trainable.kind=lora")
        if runtime.offload is not None and not part.removable:
            what = "runtime.offload keeps frozen weights on the host, and all weights are trained"
            raise UserError(what, "--set runtime.offload=null")
        self._check_shard()

    def _check_shard(self) -> None:
        """Raise UserError if `runtime.shard` would divide what cannot be divided."""
        runtime = self.runtime
        if runtime.shard == "replicate":
            return
        divides, fix = f"runtime.shard={runtime.shard} divides", "--set runtime.shard=replicate"
        if runtime.quantize is not None:
            what = f"{divides} weights, and runtime.quantize={runtime.quantize} packs them"
            raise UserError(what, f"{fix}, or --set runtime.quantize=null")
        if runtime.offload is not None:
            what = f"{divides} weights, and runtime.offload keeps them whole on the host"
            raise UserError(what, f"{fix}, or --set runtime.offload=null")
        if self.trainable.divisible and not self.optimiser.divisible:
            what = f"{divides} parameters, and optimiser '{self.optimiser.kind}' needs whole ones"
            raise UserError(what, f"{fix}, or --set optimiser.kind=adamw")
        if self.validation.images is not None:
            what = f"{divides} weights, and validation images are generated with whole ones"
            raise UserError(what, f"{fix}, or --set validation.images=null")

    def notes(self, spec: ModelSpec) -> list[str]:
        """What is unusual about training this model, and no error."""
        from uhr.models.samplers import find_sampler

        name = self.sampling.sampler
        factor = find_sampler(name).vae_factor
        if factor is None or factor == spec.vae_factor:
            return []
        what = f"recipe {self.name} is for sampler {name} and an F{factor} VAE, and {spec.name} has an "
        what += (
            f"F{spec.vae_factor} one, with {(factor / spec.vae_factor) ** 2:g} times as many tokens an image"
        )
        fix = f"name a model with an F{factor} VAE, or a sampler for this one, --set sampling.sampler=euler"
        return [f"{what}: {fix}"]

    def changes_for(self, spec: ModelSpec) -> list[str]:
        """The changes, as `path=value`, that adapt this recipe to the model's family and guidance."""
        changes = [] if spec.family == self.family else [f"family={spec.family}"]
        if spec.guidance != self.guidance.kind:
            scale = "1.0" if spec.guidance == "embedded" else "null"
            changes.append(f"guidance={{kind: {spec.guidance}, scale: {scale}}}")
        return changes


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) for every value of a configuration; a list of plain values is one value."""
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list) and any(isinstance(entry, Mapping) for entry in tree):
        for index, value in enumerate(tree):
            yield from leaves(value, f"{path}.{index}")
    else:
        yield path, tree
