"""What a set will take: the plan of one image of each kind, times their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from uhr.base.console import counted, progress, say, table, warn
from uhr.base.errors import UserError
from uhr.base.files import user_path
from uhr.models.estimate import plan_text
from uhr.models.estimate.plan import Plan, plan
from uhr.models.estimate.plan_text import duration, gib
from uhr.models.families.text import TokenCount
from uhr.models.generate.images import open_image
from uhr.models.generate.request import Item, Request


@dataclass(frozen=True)
class Kind:
    """Images that take the same: how many, and the plan of one."""

    count: int
    plan: Plan

    @property
    def seconds(self) -> float | None:
        """Of all of them, one after another; None on a CPU, of which no time is said."""
        return None if self.plan.device is None else self.count * self.plan.asked.total


def plan_set(request: Request, items: Sequence[tuple[Item, str]], on: str | None = None) -> list[Kind]:
    """The kinds of images of a set of items, each with the place that an error about it names. Prompts do
    not matter, so a kind is a size, with or without an image and a negative prompt.

    A given image that cannot be used is warned of; other errors are a UserError, and so is a set of which
    nothing can be made.
    """
    found: dict[Any, tuple[int, Plan | None]] = {}
    with progress("plan", len(items), "images") as advance:
        for item, where in items:
            try:
                given = None if item.image is None else open_image(user_path(item.image)).size
                key = (given, item.size, item.negative is None)
                count, known = found.get(key, (0, None))
                found[key] = (count + 1, known or plan(request, item, on))
            except UserError as error:
                told = UserError(error.what if where in error.what else f"{where}: {error.what}", error.fix)
                if item.image is None:
                    raise told from error
                warn(str(told))
            advance()
    kinds = [Kind(count, known) for count, known in found.values() if known is not None]
    if not kinds:
        raise UserError(f"none of the {len(items)} images can be used", "see above what is wrong with each")
    return sorted(kinds, key=lambda kind: kind.plan.asked.peak.total, reverse=True)


def describe(kinds: Sequence[Kind], counts: Sequence[TokenCount]) -> dict[str, Any]:
    """Everything as JSON; `seconds` on one GPU, without loading the model. `counts`: of all prompts."""
    return {
        **plan_text.describe_counts(counts),
        "pictures": sum(kind.count for kind in kinds),
        "seconds": _seconds(kinds),
        "kinds": [{"pictures": kind.count, **plan_text.describe(kind.plan)} for kind in kinds],
    }


def show(kinds: Sequence[Kind]) -> None:
    """For people: the plan of the image that takes most memory, and what all of them take."""
    plan_text.show(kinds[0].plan)
    say(f"\nthat is one image{' of the largest kind' if len(kinds) > 1 else ''}; the set:\n")
    rows = [
        [kind.count, f"{kind.plan.call.width}x{kind.plan.call.height}", gib(kind.plan.asked.peak.total)]
        + ([] if kind.seconds is None else [duration(kind.plan.asked.total), duration(kind.seconds)])
        for kind in kinds
    ]
    seconds = _seconds(kinds)
    table(["images", "size", "memory", *(() if seconds is None else ("each", "in all"))], rows)
    if seconds is not None:
        images = counted(sum(kind.count for kind in kinds), "image")
        say(
            f"\n{images}: some {duration(seconds)} on one GPU, an image after another; "
            "loading the model comes on top"
        )


def _seconds(kinds: Sequence[Kind]) -> float | None:
    each = [kind.seconds for kind in kinds if kind.seconds is not None]
    return sum(each) if each else None
