"""A filter of rows: a status, an SQL condition, chosen values and ranges; it can be saved as a slice."""

from __future__ import annotations

from typing import Annotated, Literal

import pyarrow as pa
from pydantic import Field

from uhr.base.config import Config, Text
from uhr.base.errors import UserError, unknown
from uhr.manifests.selection.options import SliceOptions
from uhr.manifests.sql import SqlCondition, literal, quoted
from uhr.manifests.stats import numeric_columns

Finite = Annotated[float, Field(allow_inf_nan=False)]

WHERE = "the condition"
"""How errors name the text that a user has typed."""


class Range(Config):
    """A range of numbers, with both ends; None is no limit."""

    low: Finite | None = None
    high: Finite | None = None


class Filter(Config):
    """Rows of a status for which `where` (SQL; may be empty) is true, and whose columns have one of the
    values of `values`, where None is a missing value, and are in the ranges of `ranges`.

    A column of lists has a value if it is one of its elements.
    """

    status: Literal["kept", "rejected", "failed", "any"] = "any"
    where: Text = ""
    values: dict[Text, tuple[Text | bool | None, ...]] = Field(default_factory=dict)
    ranges: dict[Text, Range] = Field(default_factory=dict)

    def without(self, column: str) -> Filter:
        """Return the same filter without the values of one column."""
        left = {name: values for name, values in self.values.items() if name != column}
        return self.model_copy(update={"values": left})

    def without_range(self, column: str) -> Filter:
        """Return the same filter without the range of one column."""
        left = {name: value for name, value in self.ranges.items() if name != column}
        return self.model_copy(update={"ranges": left})

    def condition(self, schema: pa.Schema) -> SqlCondition | None:
        """Return everything but the status as one condition; None if it would be true for every row.

        Raises UserError if `where` is no condition over the columns of `schema`, or if a column of `values`
        or `ranges` has no values to choose from, or is not numeric.
        """
        texts = []
        if self.where.strip():
            # alone: "a) OR (b" would be a condition once it is joined
            SqlCondition.parse(self.where, WHERE).check(schema)
            texts.append(self.where.strip())
        texts += [_one_of(schema, name, values) for name, values in self.values.items() if values]
        texts += [_between(schema, name, range_) for name, range_ in self.ranges.items() if range_ != Range()]
        if not texts:
            return None
        joined = texts[0] if len(texts) == 1 else " AND ".join(f"({text})" for text in texts)
        found = SqlCondition.parse(joined, WHERE)
        found.check(schema)
        return found

    def options(self, schema: pa.Schema) -> SliceOptions:
        """Return the slice of these rows. Raises UserError as `condition`."""
        condition = self.condition(schema)
        return SliceOptions(status=self.status, where=None if condition is None else condition.text)


def has_values(kind: pa.DataType) -> bool:
    """Whether rows can be chosen by the values of a column of this type: texts, booleans, lists of texts."""
    return pa.types.is_string(kind) or pa.types.is_boolean(kind) or has_texts(kind)


def has_texts(kind: pa.DataType) -> bool:
    """Whether a column has lists of texts."""
    return pa.types.is_list(kind) and pa.types.is_string(kind.value_type)


def _one_of(schema: pa.Schema, name: str, values: tuple[str | bool | None, ...]) -> str:
    if name not in schema.names:
        raise unknown("column", name, schema.names)
    kind = schema.field(name).type
    if not has_values(kind):
        raise UserError(f"{name} is {kind}, not a text", "write a condition over it instead")
    column = quoted(name)
    known = [value for value in values if value is not None]
    if pa.types.is_boolean(kind):
        written = [str(value).lower() for value in known]
        if not {"true", "false"}.issuperset(written):
            raise UserError(f"{name} is true or false, not {written[0]}", "choose one of them")
    else:
        written = [literal(str(value)) for value in known]
    if has_texts(kind):
        texts = [f"list_contains({column}, {text})" for text in written]
        texts += [f"coalesce(len({column}), 0) = 0"] if None in values else []
        return texts[0] if len(texts) == 1 else f"({' OR '.join(texts)})"
    texts = [f"{column} = {written[0]}"] if len(written) == 1 else []
    texts = [f"{column} IN ({', '.join(written)})"] if len(written) > 1 else texts
    texts += [f"{column} IS NULL"] if None in values else []
    return texts[0] if len(texts) == 1 else f"({' OR '.join(texts)})"


def _between(schema: pa.Schema, name: str, range_: Range) -> str:
    if name not in schema.names:
        raise unknown("column", name, schema.names)
    if name not in numeric_columns(schema):
        raise UserError(
            f"{name} is {schema.field(name).type}, not a number", "choose one of its values instead"
        )
    ends = [(">=", range_.low), ("<=", range_.high)]
    return " AND ".join(f"{quoted(name)} {sign} {end:.17g}" for sign, end in ends if end is not None)
