"""The scheduler's configuration and its noise levels.

Every key of FlowMatchEulerDiscreteScheduler is used, has no effect here, or is rejected; a contract test
compares the lists with the installed class. Levels are computed by diffusers' own scheduler, so that they are
those of the stock pipelines.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from uhr.base.errors import UserError, one_line
from uhr.models.ops.choices import ShiftPolicy

if TYPE_CHECKING:
    from uhr.models.ops.schedules import Shifter
    from uhr.models.samplers.core.plan import SamplingStage

CLASS = "FlowMatchEulerDiscreteScheduler"

SHIFT = (
    "shift", "use_dynamic_shifting", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len",
)  # fmt: skip
"""Keys that every shift reads, of the checkpoint's configuration or of a sampler's own policy. FLUX.2's
dynamic shift, like its stock pipeline's, has its own formula and reads none of the last four."""

SPACING: Mapping[str, tuple[Any, ...]] = {
    "use_karras_sigmas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "shift_terminal": (None, 0, False),
    "time_shift_type": ("exponential",),
}
"""Keys that change the spacing of the checkpoint's own levels only, with the values at which they change
nothing; diffusers' default is the first."""

REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "num_train_timesteps": ((1000,), "the network's input is sigma itself, for a thousand training steps"),
    "invert_sigmas": ((False, None), "levels here fall from 1 (noise) to 0 (data)"),
    "stochastic_sampling": ((False, None), "the samplers here take deterministic Euler steps"),
}
"""Keys that are not supported: the accepted values, diffusers' default first, and the reason."""


class Shifts(Protocol):
    """The part of a backbone's family (`families.base.Backbone`) that is needed here: its dynamic shift."""

    def shifter(self, scheduler_config: Mapping[str, Any], steps: int) -> Shifter: ...


@dataclass(frozen=True)
class SchedulerConfig:
    """A checked configuration; missing keys have the class's defaults."""

    values: Mapping[str, Any]

    @classmethod
    def of(cls, config: Mapping[str, Any], where: str) -> SchedulerConfig:
        """Check the keys and values of a `scheduler_config.json` or of a scheduler's `config`.

        Raises UserError, in which `where` names it, for another class of scheduler, for a value that would be
        ignored, and for an unknown key that is in use.
        """
        name = config.get("_class_name", CLASS)
        if name != CLASS:
            what = f"{where} is a {name}, and the samplers here take the Euler steps of {CLASS}"
            raise UserError(what, f"use a checkpoint with a {CLASS}")
        for key, value in config.items():
            _check(key, value, where)
        values = {key: value for key, value in config.items() if not key.startswith("_")}
        if sum(bool(values.get(key)) for key in SPACING if key.startswith("use_")) > 1:
            several = ", ".join(key for key in SPACING if key.startswith("use_") and values.get(key))
            raise UserError(f"{where} has {several}", "only one of them can be true")
        return cls(values)

    @classmethod
    def usual(cls, policy: ShiftPolicy) -> SchedulerConfig:
        """Return the configuration of a backbone of which only the policy is known: a dynamic shift, a static
        one of 3, or none."""
        return cls(
            {
                "use_dynamic_shifting": policy is ShiftPolicy.DYNAMIC,
                "shift": 3.0 if policy is ShiftPolicy.STATIC else 1.0,
            }
        )

    @classmethod
    def of_scheduler(cls, scheduler: Any) -> SchedulerConfig:
        """Read a loaded scheduler as it is now, with `set_shift` and attributes that were set on its
        `config`."""
        name = next((each.__name__ for each in type(scheduler).__mro__ if each.__name__ == CLASS), None)
        config = {key: getattr(scheduler.config, key) for key in scheduler.config if not key.startswith("_")}
        named = {**config, "_class_name": name or type(scheduler).__name__}
        if name is not None:
            named["shift"] = scheduler.shift
        return cls.of(named, "the scheduler")

    @property
    def spacing(self) -> dict[str, Any]:
        """The keys of `SPACING` that are in use."""
        return {
            key: self.values[key]
            for key, plain in SPACING.items()
            if key in self.values and self.values[key] not in plain
        }

    def schedule(
        self,
        family: Shifts,
        steps: int,
        tokens: int,
        shift: ShiftPolicy | str | None = None,
        factor: float = 3.0,
    ) -> list[float]:
        """Return steps + 1 noise levels from 1 to 0 for this many image tokens.

        With `shift` None they are those of the checkpoint's configuration, spacing included. A policy is that
        shift of the linear grid and nothing else: by `factor`, or the dynamic one of the backbone's `family`.
        """
        from uhr.models.ops import schedules

        dynamic = family.shifter(self.values, steps)
        if shift is None:
            return self._levels(steps, tokens, dynamic)
        return schedules.shifted(ShiftPolicy(shift), steps, tokens, factor, dynamic).tolist()

    def notes(self, family: Shifts, stages: Sequence[SamplingStage], multiple: int) -> list[str]:
        """Return a note for the user if the configuration has a spacing and some of a plan's `stages` have
        noise levels of the sampler's own. `multiple` is the side of an image token in px."""
        spacing = ", ".join(f"{key} {json.dumps(value)}" for key, value in self.spacing.items())
        own = [stage.name for stage in stages if not self._made(family, stage, multiple)] if spacing else []
        if not own:
            return []
        where = "this call" if len(own) == len(stages) else f"stage {', '.join(own)}"
        return [f"the scheduler's {spacing} does not apply to {where}: the sampler has its own noise levels"]

    def _made(self, family: Shifts, stage: SamplingStage, multiple: int) -> bool:
        """Whether the stage's levels are those of the configuration."""
        try:
            tokens = stage.height * stage.width // multiple**2
            return list(stage.sigmas) == self.schedule(family, stage.steps, tokens)
        except UserError:
            return False

    def _levels(self, steps: int, tokens: int, dynamic: Shifter) -> list[float]:
        """Return steps + 1 decreasing noise levels for this many image tokens, those of the stock pipeline.

        They are diffusers' `set_timesteps` on the grid 1, 1 - 1/steps, ..., with mu from the family's
        `dynamic` shift. Raises UserError beyond the shift's calibration, and for levels that do not fall to
        0.
        """
        import diffusers
        import numpy as np

        if steps < 1:
            raise UserError(f"{steps} steps", "give at least 1")
        known = {key: value for key, value in self.values.items() if is_known(key)}
        scheduler: Any = getattr(diffusers, CLASS)(**known)
        mu = None
        if known.get("use_dynamic_shifting"):
            dynamic.factor(tokens)
            mu = dynamic.mu(tokens)
        with np.errstate(all="ignore"):
            scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
        found = scheduler.sigmas.tolist()
        if not (found[0] <= 1 and found[-1] == 0 and all(a > b for a, b in pairwise(found))):
            keys = ", ".join(f"{key} {value!r}" for key, value in known.items() if key in (*SHIFT, *SPACING))
            what = f"{counted_levels(found)} of the scheduler ({keys}) do not fall from at most 1 to 0"
            raise UserError(what, "use more steps, or correct its configuration")
        return found


def counted_levels(levels: list[float]) -> str:
    """Describe noise levels by the first four, for messages."""
    shown = ", ".join(f"{level:.4g}" for level in levels[:4])
    return f"the noise levels {shown}{', ...' if len(levels) > 4 else ''}"


def is_known(key: str) -> bool:
    """Whether `key` is a key of the class."""
    return key in (*SHIFT, *SPACING, *REFUSED)


def read_config(folder: Path) -> dict[str, Any]:
    """Read a model's `scheduler/scheduler_config.json`; {} if there is none.

    Raises UserError for a file that cannot be read.
    """
    file = folder / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read ({one_line(error)})", "correct it or download it again"
        ) from error
    if not isinstance(found, dict):
        raise UserError(f"{file} is not a configuration", "download it again")
    return found


def _check(key: str, value: Any, where: str) -> None:
    if key in REFUSED and value not in REFUSED[key][0]:
        accepted, why = REFUSED[key]
        fix = f"set it to {json.dumps(accepted[0])} in scheduler_config.json, if the weights allow it"
        raise UserError(f"{where} has {key} {value!r}, and {why}", fix)
    if not is_known(key) and not key.startswith("_") and value not in (None, False, [], {}, ""):
        what = f"{where} has {key} {value!r}, which {CLASS} does not support"
        raise UserError(what, "update diffusers, or remove the key from scheduler_config.json")
    if key in _TYPES and not isinstance(value, _TYPES[key]):
        raise UserError(f"{where} has {key} {value!r}", f"it must be {_TYPE_NAMES[_TYPES[key]]}")
    if key == "time_shift_type" and value not in ("exponential", "linear"):
        raise UserError(f"{where} has {key} {value!r}", "it must be exponential or linear")


_NUMBER: tuple[type, ...] = (int, float)
_OPTIONAL: tuple[type, ...] = (int, float, type(None))
_SWITCH: tuple[type, ...] = (bool, type(None))
_TYPE_NAMES: Mapping[tuple[type, ...], str] = {
    _NUMBER: "a number",
    _OPTIONAL: "a number or null",
    _SWITCH: "true or false",
}
_TYPES: Mapping[str, tuple[type, ...]] = {
    "shift": _NUMBER,
    "base_shift": _NUMBER,
    "max_shift": _NUMBER,
    "base_image_seq_len": _NUMBER,
    "max_image_seq_len": _NUMBER,
    "shift_terminal": _OPTIONAL,
    **dict.fromkeys(
        ("use_dynamic_shifting", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
        _SWITCH,
    ),
}
