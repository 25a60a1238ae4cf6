"""Near-duplicates: images whose perceptual hashes differ in few bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
from pydantic import Field

from uhr.base.console import progress, say
from uhr.curate.measures.hamming import comparisons, comparisons_per_second, leaders_within
from uhr.curate.stage import SetStage, Workspace
from uhr.curate.stages.sets.order import Order, order_by, terms
from uhr.manifests.schema import Column

if TYPE_CHECKING:
    import numpy as np

LONG = 5.0
"""Seconds above which the time is printed first."""


class NearDuplicatesStage(SetStage):
    """Groups kept rows around the best of them by `order`. A row within `radius` bits of a better one that is
    not a duplicate itself is its duplicate (`dup_of`); ties are broken by `uri`.

    Exact: no pair is missed. The number of comparisons grows with the square of the rows, slowly for a small
    radius; where it takes long, the time is printed first.
    """

    name = "near_duplicates"
    hashed_name = "uhr.curate.stages.near_duplicates:NearDuplicatesStage"

    class Params(SetStage.Params):
        radius: int = Field(4, ge=0, le=20, description="largest number of different bits of 64")
        order: Order = Field(["megapixels desc"])

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        self.needs = ("phash", *(term.column for term in terms(self.params.order)))
        self.adds = (
            Column(
                "near_group",
                pa.string(),
                "`sample_id` of the best of the images that look alike; null where there is only one",
                stage=self.name,
            ),
            Column(
                "dup_of",
                pa.string(),
                "`sample_id` of the better image that this one looks like; null for the best one",
                stage=self.name,
            ),
        )

    def compute(self, live: duckdb.DuckDBPyRelation, workspace: Workspace) -> pa.Table:
        import numpy as np

        ordered = live.filter("phash IS NOT NULL").order(order_by(self.params.order))
        rows = ordered.select("sample_id, phash").to_arrow_table()
        ids = rows["sample_id"].to_pylist()
        hashes = np.array([int(text, 16) for text in rows["phash"].to_pylist()], np.uint64)
        lead = self._leaders(hashes, workspace.label)
        grouped = set(lead[lead != np.arange(len(ids))].tolist())
        table: dict[str, list[str | None]] = {"sample_id": ids, "near_group": [], "dup_of": []}
        for place, leader in enumerate(lead.tolist()):
            alone = leader == place and place not in grouped
            table["near_group"].append(None if alone else ids[leader])
            table["dup_of"].append(None if leader == place else ids[leader])
        return pa.table(table, schema=pa.schema([(name, pa.string()) for name in table]))

    def _leaders(self, hashes: np.ndarray, label: str) -> np.ndarray:
        radius = self.params.radius
        total = comparisons(hashes, radius)
        seconds = total / comparisons_per_second()
        if seconds < LONG:
            return leaders_within(hashes, radius)
        say(
            f"stage '{label}' makes {total:.2g} comparisons of {len(hashes):,} hashes: about {seconds:,.0f} s"
        )
        with progress(label, total, "comparisons") as advance:
            return leaders_within(hashes, radius, advance)
