"""What a caller hears of a run: calls of the backbone and step callbacks, by which it may end the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from uhr.base.console import Advance
from uhr.base.errors import UserError
from uhr.models.samplers.core.run_record import RunRecord

OnStepEnd = Callable[[Any, int, torch.Tensor, dict[str, Any]], dict[str, Any]]
"""diffusers' `callback_on_step_end(pipeline, step, timestep, tensors) -> tensors to go on with`."""


@dataclass
class Progress:
    """Counts calls of the backbone in the run's record, and tells a progress bar or a watcher of them."""

    record: RunRecord
    bar: Any = None
    """Has `update(n)`; None until it is opened."""

    watch: Advance | None = None
    """Hears of each call with its stage's name, in place of the bar."""

    def calls(self, count: int) -> None:
        """So many calls were made."""
        self.record.model_calls += count
        if self.watch is not None:
            self.watch(count, note=self.record.stage_name)
        elif self.bar is not None:
            self.bar.update(count)

    def note(self, text: str) -> None:
        """What is done now that is no call."""
        if self.watch is not None:
            self.watch(0, note=text)


@dataclass
class Steps:
    """The step callback of a diffusers pipeline, whose step number counts on from stage to stage, and the
    properties in which the pipeline shows where it is."""

    pipeline: Any
    callback: OnStepEnd | None = None
    names: Sequence[str] = ("latents",)
    done: int = field(default=0, init=False)

    def check(self, known: Sequence[str]) -> None:
        """UserError for names of tensors that the callback cannot be shown."""
        wrong = [name for name in self.names if name not in known]
        if wrong:
            what = f"the step callback asks for {', '.join(wrong)}"
            raise UserError(what, f"known: {', '.join(known)}")

    def interrupted(self) -> bool:
        return self.pipeline.interrupt

    def start(self, steps: int) -> None:
        """A stage of so many steps begins."""
        self.pipeline._num_timesteps = steps

    def begin(self, sigma: float) -> None:
        """A step from noise level sigma begins."""
        self.pipeline._current_timestep = 1000 * sigma

    def end(self, step: int, sigma: float, tensors: dict[str, Any]) -> dict[str, Any]:
        """A step of the stage has ended; the tensors that the callback replaces."""
        if self.callback is None:
            return {}
        shown = {name: tensors[name] for name in self.names}
        timestep = torch.tensor(1000 * sigma, dtype=torch.float32)
        return self.callback(self.pipeline, self.done + step, timestep, shown) or {}

    def finish(self, steps: int) -> None:
        """A stage has ended, and the next one's steps count on from it."""
        self.pipeline._current_timestep = None
        self.done += steps
