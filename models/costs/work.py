"""What a sampler's stages ask of backbone and VAE, in numbers: the calls, and what each goes over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from uhr.models.attention.counts import pairs
from uhr.models.attention.layout import WindowLayout
from uhr.models.attention.proportional import text_copies
from uhr.models.attention.rules import WindowRules
from uhr.models.costs.operations import BackboneCost, Operations, dense_pairs
from uhr.models.spec import GuidanceKind
from uhr.models.stages import Ask, Stage
from uhr.models.swin import shifts

Guided = Literal["none", "kept", "in every call"]
"""Whether there is a guide, and whether its keys and values are kept from the first call on."""


@dataclass(frozen=True)
class Windowed:
    """Attention in windows, with or without a guide."""

    layout: WindowLayout
    rules: WindowRules
    guide: Guided


@dataclass(frozen=True)
class Calls:
    """`count` calls of the backbone in one branch of guidance, each over `image` and `text` tokens;
    `windows` None is dense attention. So many `together` share a batch."""

    count: int
    image: int
    text: int
    windows: Windowed | None = None
    together: int = 1

    @property
    def guide(self) -> int:
        """Guide tokens."""
        windows = self.windows
        return 0 if windows is None or windows.guide == "none" else windows.layout.guide_tokens

    @property
    def pairs(self) -> int:
        """Query-key pairs of one layer in one call, without those among the guide's own tokens."""
        if self.windows is None:
            return dense_pairs(self.image, self.text)
        counted = pairs(self.windows.layout, self.windows.rules, self.text, self.guide > 0)
        return counted.text + counted.image

    def operations(self, backbone: BackboneCost) -> Operations:
        """Of all calls."""
        whole = backbone.call(self.image, self.text, self.pairs).times(self.count)
        if not self.guide or self.windows is None:
            return whole
        counted = pairs(self.windows.layout, self.windows.rules, self.text)
        guide = backbone.guide(self.guide, counted.guide)
        return whole.plus(guide.times(1 if self.windows.guide == "kept" else self.count))


@dataclass(frozen=True)
class Coding:
    """`count` passes of the VAE over pictures of height x width px."""

    part: Literal["encode", "decode"]
    height: int
    width: int
    count: int = 1


class Costed:
    """Base of the samplers, as far as their costs go: a sampler overrides what is not so with it."""

    @classmethod
    def calls(cls, ask: Ask, options: Any, stage: Stage, text: int) -> tuple[Calls, ...]:
        """The backbone's over a stage for one branch of guidance, by resolved options; `text` is the prompt's
        tokens. By default each is over the stage's whole grid."""
        return (Calls(stage.steps * stage.calls, tokens(ask, stage), told(ask, options, stage, text)),)

    @classmethod
    def codings(cls, ask: Ask, options: Any, plan: Sequence[Stage]) -> list[tuple[Coding, ...]]:
        """The VAE's, by stage. By default a stage begins at the picture below it (the given one at the
        first), enlarged and encoded, and the last one's is decoded."""
        found: list[tuple[Coding, ...]] = []
        for index, stage in enumerate(plan):
            begins = index > 0 or ask.picture
            encoded = (Coding("encode", *stage.size),) if begins else ()
            found.append((*encoded, Coding("decode", *stage.size)))
        return found

    @classmethod
    def branches(
        cls, kind: GuidanceKind, options: Any, guidance: float | None, negative: bool, stage: Stage
    ) -> int:
        """Calls of the backbone that one guided velocity takes in a stage."""
        if kind == "cfg":
            return 1 if guidance == 1 else 2
        return 2 if negative else 1


def told(ask: Ask, options: Any, stage: Stage, text: int) -> int:
    """Text tokens of a stage, copies included (`hr_toolkit.Toolkit.told`)."""
    toolkit = getattr(options, "toolkit", None)
    if stage.name == "base" or toolkit is None or not toolkit.text_duplication:
        return text
    return text * text_copies(stage.height // ask.multiple, stage.width // ask.multiple, ask.native_side)


def swung_calls(ask: Ask, options: Any, stage: Stage, text: int) -> tuple[Calls, ...]:
    """Those of a stage over its whole grid, which with swin patchify has a row and a column more at every
    other step (`swin.py`)."""
    text = told(ask, options, stage, text)
    if stage.name == "base" or not options.swin:
        return (Calls(stage.steps, tokens(ask, stage), text),)
    rows, columns = stage.height // ask.multiple, stage.width // ask.multiple
    wider = sum(shifts(step) for step in range(stage.steps))
    shifted = Calls(wider, (rows + 1) * (columns + 1), text)
    return (shifted, Calls(stage.steps - wider, rows * columns, text)) if stage.steps > 1 else (shifted,)


def tokens(ask: Ask, stage: Stage) -> int:
    """Image tokens of a stage's whole grid."""
    return (stage.height // ask.multiple) * (stage.width // ask.multiple)
