"""The plan of a set: items that cost the same form a group, and one image of each group is planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from uhr.base.console import counted, progress, say, table, warn
from uhr.base.errors import UserError
from uhr.base.files import user_path
from uhr.base.formatting import duration, gibibytes
from uhr.models.estimate import plan_text
from uhr.models.estimate.plan import CallPlan, plan
from uhr.models.families.text import TokenCount
from uhr.models.generate.input_images import open_image
from uhr.models.generate.request import Item, Request


@dataclass(frozen=True)
class ItemGroup:
    """Images of equal cost: how many, and the plan of one."""

    count: int
    plan: CallPlan

    @property
    def seconds(self) -> float | None:
        """Seconds of all of them, one after another; None on a CPU, for which no time is estimated."""
        return None if self.plan.device is None else self.count * self.plan.requested.total


def plan_set(request: Request, items: Sequence[tuple[Item, str]], on: str | None = None) -> list[ItemGroup]:
    """Plan the items of a set, each with the place that errors about it name; the largest group comes first.

    Prompts do not matter: a group is a size, with or without an input image and a negative prompt. Warns of
    input images that cannot be used. Raises UserError for other errors, and if no item can be generated.
    """
    found: dict[Any, tuple[int, CallPlan | None]] = {}
    with progress("plan", len(items), "images") as advance:
        for item, where in items:
            try:
                given = None if item.image is None else open_image(user_path(item.image)).size
                key = (given, item.size, item.negative is None)
                count, known = found.get(key, (0, None))
                found[key] = (count + 1, known or plan(request, item, on))
            except UserError as error:
                what = error.what if where in error.what else f"{where}: {error.what}"
                located = UserError(what, error.fix)
                if item.image is None:
                    raise located from error
                warn(str(located))
            advance()
    groups = [ItemGroup(count, known) for count, known in found.values() if known is not None]
    if not groups:
        raise UserError(f"none of the {len(items)} images can be used", "see above what is wrong with each")
    return sorted(groups, key=lambda group: group.plan.requested.peak.total, reverse=True)


def describe(groups: Sequence[ItemGroup], counts: Sequence[TokenCount]) -> dict[str, Any]:
    """Return the plan as JSON. `seconds` are on one GPU, without loading the model; `counts` are the tokens
    of all prompts."""
    return {
        **plan_text.describe_counts(counts),
        "pictures": sum(group.count for group in groups),
        "seconds": _seconds(groups),
        "kinds": [{"pictures": group.count, **plan_text.describe(group.plan)} for group in groups],
    }


def show(groups: Sequence[ItemGroup]) -> None:
    """Print the plan of the image that needs the most memory, and the totals of the set."""
    plan_text.show(groups[0].plan)
    say(f"\nthat is one image{' of the largest group' if len(groups) > 1 else ''}; the set:\n")
    rows = [
        [
            group.count,
            f"{group.plan.call.width}x{group.plan.call.height}",
            gibibytes(group.plan.requested.peak.total),
        ]
        + ([] if group.seconds is None else [duration(group.plan.requested.total), duration(group.seconds)])
        for group in groups
    ]
    seconds = _seconds(groups)
    table(["images", "size", "memory", *(() if seconds is None else ("each", "total"))], rows)
    if seconds is not None:
        images = counted(sum(group.count for group in groups), "image")
        say(
            f"\n{images}: some {duration(seconds)} on one GPU, an image after another; "
            "loading the model comes on top"
        )


def _seconds(groups: Sequence[ItemGroup]) -> float | None:
    each = [group.seconds for group in groups if group.seconds is not None]
    return sum(each) if each else None
