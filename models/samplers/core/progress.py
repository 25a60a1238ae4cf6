"""Progress of a run: counted calls of the backbone, and step callbacks, which may interrupt the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from uhr.base.console import Advance
from uhr.base.errors import UserError
from uhr.models.samplers.core.run_record import RunRecord

OnStepEnd = Callable[[Any, int, torch.Tensor, dict[str, Any]], dict[str, Any]]
"""diffusers' `callback_on_step_end(pipeline, step, timestep, tensors) -> tensors to continue with`."""


@dataclass
class Progress:
    """Counts calls of the backbone in the run's record, and reports them to a progress bar or `watch`."""

    record: RunRecord
    bar: Any = None
    """A bar with `update(n)`; None until it is opened."""

    watch: Advance | None = None
    """Called for each call with its stage's name, instead of the bar."""

    def calls(self, count: int) -> None:
        """Count calls that were made."""
        self.record.model_calls += count
        if self.watch is not None:
            self.watch(count, note=self.record.stage_name)
        elif self.bar is not None:
            self.bar.update(count)

    def note(self, text: str) -> None:
        """Report an activity that is not a call."""
        if self.watch is not None:
            self.watch(0, note=text)


@dataclass
class Steps:
    """Calls the step callback of a diffusers pipeline, and sets the pipeline's properties for the current
    step. Step numbers continue from stage to stage."""

    pipeline: Any
    callback: OnStepEnd | None = None
    names: Sequence[str] = ("latents",)
    done: int = field(default=0, init=False)

    def check(self, known: Sequence[str]) -> None:
        """Raise UserError for names of tensors that the callback cannot get."""
        wrong = [name for name in self.names if name not in known]
        if wrong:
            what = f"the step callback requests unknown tensors: {', '.join(wrong)}"
            raise UserError(what, f"known: {', '.join(known)}")

    def interrupted(self) -> bool:
        return self.pipeline.interrupt

    def start(self, steps: int) -> None:
        """Begin a stage of `steps` steps."""
        self.pipeline._num_timesteps = steps

    def begin(self, sigma: float) -> None:
        """Begin a step from noise level sigma."""
        self.pipeline._current_timestep = 1000 * sigma

    def end(self, step: int, sigma: float, tensors: dict[str, Any]) -> dict[str, Any]:
        """End a step of the stage, and return the tensors that the callback replaces."""
        if self.callback is None:
            return {}
        shown = {name: tensors[name] for name in self.names}
        timestep = torch.tensor(1000 * sigma, dtype=torch.float32)
        return self.callback(self.pipeline, self.done + step, timestep, shown) or {}

    def finish(self, steps: int) -> None:
        """End a stage; step numbers of the next one continue from it."""
        self.pipeline._current_timestep = None
        self.done += steps
