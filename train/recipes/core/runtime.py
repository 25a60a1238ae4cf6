"""How a run is computed and stored, and how its result is sampled."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from uhr.base.config import Config, apply_sets, build
from uhr.models.adapters.formats.usage import IntendedSampling


class Runtime(Config):
    """Device, precision and checkpoints of a run; `checkpoint.MAY_CHANGE` lists what may change on resume.

    precision: of the frozen weights and of the computation; adapters and their optimiser are float32 always.
    shard: how several processes divide the weights (`train.run.processes.shard`). replicate: each has all.
        full: each has a part. hybrid: the processes of a machine divide them, and every machine has all.
    checkpoint_every: steps between checkpoints (the last step and an interruption write one too).
    keep_checkpoints: how many of the newest are kept; of the others their adapters are (`checkpoints.kept`).
    restarts: how often a run of several processes, of which one was killed, begins anew at its last
        checkpoint.
    data_cache: GiB on the disk of each machine, for all of its processes together, in which row groups of
        encoded data in an object store are kept; data in a folder are read in place.
    log: where the numbers of `log.jsonl` are written too.
    compile: compile each kind of block once (`torch.compile`).
    quantize: of the frozen weights, by the names of `models.loading.quantize.KINDS`.
    offload: "blocks" keeps the blocks' frozen weights on the host and streams them (`models.loading.stream`).
    """

    device: str
    precision: Literal["bfloat16", "float32"]
    gradient_checkpointing: bool
    shard: Literal["replicate", "hybrid", "full"] = "replicate"
    checkpoint_every: int = Field(gt=0)
    keep_checkpoints: int = Field(gt=0)
    restarts: int = Field(2, ge=0)
    data_cache: int = Field(64, gt=0)
    log: tuple[Literal["tensorboard", "wandb"], ...] = ()
    compile: bool = False
    quantize: Literal["nf4", "int8", "int8wo", "float8wo"] | None = None
    offload: Literal["blocks"] | None = None

    @model_validator(mode="after")
    def _one_way_to_save_memory(self) -> Runtime:
        if self.offload is not None and (self.quantize is not None or self.compile):
            raise ValueError("offload streams plain weights: leave out quantize and compile, or offload")
        if self.offload is not None and not self.gradient_checkpointing:
            raise ValueError("offload recomputes blocks: it requires gradient_checkpointing")
        return self


class Sampling(Config):
    """How the result is sampled: what its card and the command after an export say. Training reads none of
    it.

    sampler: its name. options: values of its options, as `--set` takes them.
    guidance: guidance input for a plain call of the pipeline; None is that of the model's card.
    """

    sampler: str = "euler"
    options: dict[str, Any] = Field(default_factory=dict)
    guidance: float | None = None

    def check(self) -> None:
        """Raise UserError for options that the sampler does not take; imports it if there are any."""
        if not self.options:
            return
        from uhr.models.samplers import options_class

        build(options_class(self.sampler), apply_sets({}, self.sets), f"sampling.options of {self.sampler}")

    @property
    def intended(self) -> IntendedSampling:
        """The same in the form that files of adapters have."""
        return IntendedSampling(sampler=self.sampler, guidance=self.guidance, options=self.options)

    @property
    def sets(self) -> list[str]:
        """The options as `--set` takes them."""
        return self.intended.sets

    @property
    def arguments(self) -> list[str]:
        """The options of `uhr sample SAMPLER`."""
        guidance = self.intended.guidance_of(self.sampler)
        sets = [part for each in self.sets for part in ("--set", each)]
        return [*(["--guidance", f"{guidance:g}"] if guidance is not None else []), *sets]
