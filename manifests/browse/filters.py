"""A filter of rows: a status, an SQL condition and chosen values of columns; it can be saved as a slice."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa
from pydantic import Field

from uhr.base.config import Config, Text
from uhr.base.errors import UserError, unknown
from uhr.manifests.selection.options import SliceOptions
from uhr.manifests.sql import SqlCondition, literal, quoted

WHERE = "the condition"
"""How errors name the text that a user has typed."""


class Filter(Config):
    """Rows of a status for which `where` (SQL; may be empty) is true, and whose columns have one of the
    values of `values`; None is a missing value.
    """

    status: Literal["kept", "rejected", "failed", "any"] = "any"
    where: Text = ""
    values: dict[Text, tuple[Text | bool | None, ...]] = Field(default_factory=dict)

    def without(self, column: str) -> Filter:
        """Return the same filter without the values of one column."""
        left = {name: values for name, values in self.values.items() if name != column}
        return self.model_copy(update={"values": left})

    def condition(self, schema: pa.Schema) -> SqlCondition | None:
        """Return everything but the status as one condition; None if it would be true for every row.

        Raises UserError if `where` is no condition over the columns of `schema`, or a column of `values`
        cannot be chosen from.
        """
        texts = []
        if self.where.strip():
            # alone: "a) OR (b" would be a condition once it is joined
            SqlCondition.parse(self.where, WHERE).check(schema)
            texts.append(self.where.strip())
        texts += [_one_of(schema, name, values) for name, values in self.values.items() if values]
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
    """Whether rows can be chosen by the values of a column of this type: texts and booleans."""
    return pa.types.is_string(kind) or pa.types.is_boolean(kind)


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
    texts = [f"{column} = {written[0]}"] if len(written) == 1 else []
    texts = [f"{column} IN ({', '.join(written)})"] if len(written) > 1 else texts
    texts += [f"{column} IS NULL"] if None in values else []
    return texts[0] if len(texts) == 1 else f"({' OR '.join(texts)})"
