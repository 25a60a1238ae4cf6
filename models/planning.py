"""What is known of a sampler's call before any weights are loaded: which sizes can be made, in which stages.

Everything hangs on one `Ask`: `unit` and `enough` say which sizes can be made, `plan` in which stages. A call
of a loaded pipeline asks the same questions, so that what was checked and shown is what runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from uhr.base.errors import UserError
from uhr.models.backbones.base import Backbone
from uhr.models.costs.work import Costed
from uhr.models.guidance import Guiding
from uhr.models.samplers.options import SamplerOptions
from uhr.models.scheduler_config import SchedulerConfig
from uhr.models.sizes import Size, check_enlarges, smallest
from uhr.models.spec import ModelSpec, ShiftPolicy
from uhr.models.stages import Ask, Stage

FEW_STEPS = 12
"""A model whose card asks for fewer steps was distilled for them: a sampler's own number is not for it."""


class Planning(Costed, Guiding, ABC):
    """Base of the samplers, as far as it needs no model. Sizes are (height, width) in px."""

    backbone: ClassVar[Backbone]

    Options: ClassVar[Any] = SamplerOptions
    """A class of `SamplerOptions`: the keyword arguments of a call that `uhr sample --set` can change."""

    takes_picture: ClassVar[bool] = True
    """Whether a picture may be given in place of the base pass."""

    fits_pictures: ClassVar[bool] = False
    """Whether a picture of any size comes back at exactly the size that is asked for; elsewhere `fitting`
    sees to it."""

    above_native: ClassVar[bool] = False
    """Whether all pictures have more px than the backbone's native square."""

    published_steps: ClassVar[int | None] = None
    """Of a call that names none; None is what the model's card says."""

    native_times: ClassVar[int] = 2
    """Side of a call that names no size, over the native one."""

    @classmethod
    @abstractmethod
    def plan(cls, ask: Ask, options: Any) -> list[Stage]:
        """The stages in order, the last of the size that was asked for. UserError for what cannot be."""

    @classmethod
    def resolve(cls, options: Any) -> Any:
        """The options with a preset's values, where a sampler has presets."""
        return options

    @classmethod
    def unit(cls, ask: Ask, options: Any) -> int:
        """What both sides are multiples of at about this size, in px."""
        return ask.multiple

    @classmethod
    def enough(cls, ask: Ask, options: Any) -> bool:
        """Whether a picture of this size is large enough."""
        return not cls.above_native or ask.height * ask.width > ask.native**2

    @classmethod
    def step_count(cls, spec: ModelSpec, options: Any, asked: int | None) -> int:
        """Steps of a command: as many as were asked for, or the sampler's own number."""
        return asked or cls.default_steps(spec)

    @classmethod
    def default_steps(cls, spec: ModelSpec) -> int:
        """The published number of steps, or the model's own where that is of a few-step model."""
        return spec.steps if spec.steps < FEW_STEPS else cls.published_steps or spec.steps

    @classmethod
    def default_size(cls, spec: ModelSpec) -> Size:
        """Height and width in px of a call that names none."""
        return cls.native_times * spec.native_size, cls.native_times * spec.native_size

    @classmethod
    def default_scale(cls) -> float:
        """How many times a given picture's sides a command makes that names neither scale nor size."""
        return cls.native_times

    @classmethod
    def patch(cls, spec: ModelSpec, options: Any) -> int:
        """Side in px of the least that is painted of a given picture."""
        return options.native_size or spec.native_size

    @classmethod
    def multiple(cls, spec: ModelSpec) -> int:
        """Side of an image token in px."""
        return spec.pixel_multiple

    @classmethod
    def ask(
        cls, spec: ModelSpec, options: Any, height: int, width: int, steps: int, picture: bool = False
    ) -> Ask:
        """What is asked of a model that is not loaded."""

        found = spec.scheduler_config
        config = (
            SchedulerConfig.of(found, f"the scheduler of this {spec.name}")
            if found
            else SchedulerConfig.usual(spec.shift)
        )

        def schedule(
            steps: int, tokens: int, shift: ShiftPolicy | str | None = None, factor: float = 3.0
        ) -> list[float]:
            return config.schedule(cls.backbone, steps, tokens, shift, factor)

        native = options.native_size or spec.native_size
        multiple, family = cls.multiple(spec), spec.family
        return Ask(height, width, steps, native, multiple, family, schedule, picture, spec.steps)

    @classmethod
    def checked_plan(cls, ask: Ask, options: Any) -> list[Stage]:
        """The stages of a call with resolved options; UserError for a size that cannot be made, with the
        nearest that can."""
        if ask.picture and not cls.takes_picture:
            what = "this sampler has no base pass that a picture could take the place of"
            raise UserError(what, "leave the picture out, or take sdedit or patch-cascade")
        unit = cls.unit(ask, options)
        if min(ask.size) <= 0 or ask.height % unit or ask.width % unit:
            fix = f"multiples of {unit}; nearest {cls.near(ask, options)}"
            raise UserError(f"size {ask.width}x{ask.height} cannot be made", fix)
        if cls.above_native and not cls.enough(ask, options):
            check_enlarges(ask.size, ask.native, cls.near(ask, options))
        return cls.plan(ask, options)

    @classmethod
    def near(cls, ask: Ask, options: Any) -> str:
        """The largest size that can be made with no side longer than asked for, if there is one, and the
        smallest with none shorter, for people: width first."""
        unit = cls.unit(ask, options)
        low = ask.at((ask.height // unit * unit, ask.width // unit * unit))
        high = cls._smallest(ask.at((max(ask.height, 1), max(ask.width, 1))), options)
        fits = min(low.size) > 0 and cls.unit(low, options) == unit and cls.enough(low, options)
        sizes = [low.size, high] if fits else [high]
        # where none can be for another reason, that is said next
        able = [size for size in sizes if cls._plans(ask.at(size), options)] or sizes
        return " or ".join(f"{width}x{height}" for height, width in able)

    @classmethod
    def _plans(cls, ask: Ask, options: Any) -> bool:
        try:
            cls.plan(ask, options)
        except UserError:
            return False
        return True

    @classmethod
    def _smallest(cls, ask: Ask, options: Any) -> Size:
        """As `makeable`, by resolved options."""
        return smallest(
            ask.size,
            lambda size: cls.unit(ask.at(size), options),
            lambda size: cls.enough(ask.at(size), options),
        )

    @classmethod
    def planned(
        cls, spec: ModelSpec, options: Any, height: int, width: int, steps: int, picture: bool = False
    ) -> list[Stage]:
        """The stages of a call of a model that is not loaded, the last of the size that is asked for."""
        ask = cls.ask(spec, options, height, width, steps, picture)
        return cls.checked_plan(ask, cls.resolve(options))

    @classmethod
    def makeable(cls, spec: ModelSpec, options: Any, height: int, width: int) -> Size:
        """The smallest size that can be made with sides no shorter than these: no side can be a unit shorter.

        Where it is not enough of a picture, both sides grow.
        """
        return cls._smallest(cls.ask(spec, options, height, width, steps=1), cls.resolve(options))

    @classmethod
    def preflight(
        cls,
        spec: ModelSpec,
        options: Any,
        height: int,
        width: int,
        steps: int,
        negative: bool,
        picture: bool = False,
        guidance: float | None = None,
    ) -> None:
        """UserError for what this sampler cannot make of a model, asked before any weights are loaded;
        `guidance` None is what the model's card says."""
        plan = cls.planned(spec, options, height, width, steps, picture)
        if guidance is None:
            guidance = cls.unsaid_guidance(spec, options, plan)
        told = cls.guidances(spec.guidance, cls.resolve(options), guidance, plan)
        cls.check_guidance(spec.guidance, options, told, guidance, negative, plan[0].name == "base")

    @classmethod
    def unsaid_guidance(cls, spec: ModelSpec, options: Any, plan: Sequence[Stage]) -> float | None:
        """Of a call that names none: that of the model's card, where a stage wants it."""
        told = cls.guidances(spec.guidance, cls.resolve(options), None, plan)
        return cls.default_guidance(spec) if None in told else None
