"""Rank: the position of an image among all others by one column."""

from __future__ import annotations

from typing import Any, ClassVar

import pyarrow as pa

from uhr.base.config import LaterKeys
from uhr.curate.stage import SetStage
from uhr.manifests.schema import Column
from uhr.manifests.sql import quoted


class RankStage(SetStage):
    """Adds `column`, by default `<of>_rank`: percent rank in [0, 1) by column `of` among the kept rows that
    have a value; 0 is the best.

    The top 5 % are `<of>_rank < 0.05`. Ties are broken by `uri` and `sample_id`, so that ranks are distinct
    and this share is exact.
    """

    name = "rank"
    hashed_name = "uhr.curate.stages.rank:RankStage"
    version = 2

    class Params(LaterKeys, SetStage.Params):
        later: ClassVar[tuple[str, ...]] = ("column",)

        of: str
        descending: bool = True
        column: str | None = None

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        of = self.params.of
        best = "largest" if self.params.descending else "smallest"
        self.needs = (of,)
        meaning = f"place among the live rows by `{of}`, {best} first: (rank - 1) / rows; 0 is the best"
        self.column = self.params.column or f"{of}_rank"
        self.adds = (Column(self.column, pa.float64(), meaning, "1", "[0, 1)", stage=self.name),)

    def compute(self, live: Any, workspace: Any) -> str:
        of = quoted(self.params.of)
        name = quoted(self.column)
        order = "DESC" if self.params.descending else "ASC"
        # NaN and infinity count as missing: DuckDB would order them above every number
        rank = f"row_number() OVER (PARTITION BY value IS NULL ORDER BY value {order}, uri, sample_id) - 1"
        value = f"CASE WHEN isfinite(CAST({of} AS DOUBLE)) THEN {of} END"
        return f"""
            SELECT
                sample_id,
                CASE WHEN value IS NOT NULL THEN
                    ({rank}) / CAST(count(value) OVER () AS DOUBLE)
                END AS {name}
            FROM (SELECT sample_id, uri, {value} AS value FROM live)
        """
