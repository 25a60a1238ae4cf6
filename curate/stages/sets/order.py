"""The declared order in which the best of several images is chosen: `["megapixels desc", "uri"]`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import pydantic

from uhr.manifests.sql import quoted

_TERM = re.compile(r"(\S+)(?:\s+(asc|desc))?", re.IGNORECASE)


class OrderTerm(NamedTuple):
    """A column, and `ASC` or `DESC`: whether its smallest or largest value is the best."""

    column: str
    direction: str


def terms(order: Sequence[str]) -> tuple[OrderTerm, ...]:
    """Parse an order. Raises ValueError for a text that is not a column with or without asc or desc."""
    found = []
    for text in order:
        match = _TERM.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"'{text}' is no column with asc or desc")
        found.append(OrderTerm(match[1], (match[2] or "asc").upper()))
    return tuple(found)


def order_by(order: Sequence[str]) -> str:
    """Return the order as SQL; what it leaves open is decided by `uri` and `sample_id`."""
    columns = [f"{quoted(term.column)} {term.direction} NULLS LAST" for term in terms(order)]
    return ", ".join([*columns, "uri", "sample_id"])


def _checked(order: list[str]) -> list[str]:
    terms(order)
    return order


Order = Annotated[
    list[str],
    pydantic.AfterValidator(_checked),
    pydantic.Field(description="columns, best row first, each with asc or desc"),
]
"""The parameter of a stage."""
